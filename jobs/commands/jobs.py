"""`emolake jobs`: what runs and ran on a cluster."""

from __future__ import annotations

from datetime import UTC, datetime

from emolake.jobs.cli import tell
from emolake.jobs.graph.cluster import job_client
from emolake.jobs.parser import Options, Parser, address_option


def declare(parser: Parser) -> None:
    address_option(parser)
    parser.calls(run, "emolake jobs --address http://HOST:8265")


def run(options: Options) -> int:
    jobs = [
        {
            "submission_id": job.submission_id,
            "status": str(job.status),
            "started": _time(job.start_time),
            "entrypoint": job.entrypoint,
        }
        for job in job_client(options.address).list_jobs()
        if job.submission_id
    ]
    jobs.sort(key=lambda job: str(job["started"]))
    line = "{submission_id}  {status:<9}  {started}  {entrypoint}"
    return tell(options, jobs, *(line.format(**job) for job in jobs))


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
