"""`emolake submit` and `emolake jobs`: the same job on a cluster, through the Ray Jobs API."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from emolake.jobs.cli import EXIT_FAILED, EXIT_INTERRUPTED, print_json
from emolake.jobs.options import load_config
from emolake.pipeline.config import Config
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.storage.files import parse_options

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_SECRET = ("key", "secret", "token", "password", "credential")
_LEFT_OUT = [
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "demo",
    "**/__pycache__",
]


def submit_command(options: argparse.Namespace) -> int:
    entrypoint = shlex.join(annotate_arguments(options))
    runtime_env = _runtime_env(options)
    client = _client(options.address)
    try:
        job = client.submit_job(
            entrypoint=entrypoint,
            submission_id=options.submission_id,
            runtime_env=runtime_env,
            entrypoint_num_cpus=options.entrypoint_cpus,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{options.address} did not take the job: {_words(error)}") from None
    print(f"submitted {job} to {options.address}", file=sys.stderr)
    if options.no_wait:
        if options.json:
            print_json({"submission_id": job, "status": "PENDING", "exit_code": None})
        return 0
    try:
        asyncio.run(_follow(client, job, sys.stderr if options.json else sys.stdout))
    except KeyboardInterrupt:
        print(f"{job} goes on; stop it with: ray job stop {job}", file=sys.stderr)
        raise
    except Exception as error:
        raise JobFailed(f"{job} can be followed no more, it may go on: {_words(error)}") from None
    info = client.get_job_info(job)
    code = _exit_code(str(info.status), info.driver_exit_code)
    if options.json:
        print_json({"submission_id": job, "status": str(info.status), "exit_code": code})
    elif code:
        told = info.message or "see its log"
        print(f"emolake: {job} ended with exit code {code}: {_words(told)}", file=sys.stderr)
    return code


def jobs_command(options: argparse.Namespace) -> int:
    jobs = [
        {
            "submission_id": job.submission_id,
            "status": str(job.status),
            "started": _time(job.start_time),
            "entrypoint": job.entrypoint,
        }
        for job in _client(options.address).list_jobs()
        if job.submission_id
    ]
    jobs.sort(key=lambda job: str(job["started"]))
    if options.json:
        print_json(jobs)
        return 0
    for job in jobs:
        print(f"{job['submission_id']}  {job['status']:<9}  {job['started']}  {job['entrypoint']}")
    return 0


def annotate_arguments(options: argparse.Namespace) -> list[str]:
    """The command line for the cluster. What file, environment and --set say here goes along as --set,
    so the job needs no file of this machine. UserError for credentials: arguments of a job can be
    read by everyone who sees the dashboard."""
    storage = parse_options(options.storage_options)
    for name in storage:
        if any(part in name.lower() for part in _SECRET):
            raise UserError(
                f"--storage-option {name} would stand in the job's arguments; give the cluster its own "
                "credentials (an instance role, or a secret in its environment)"
            )
    config = load_config(
        options.config, options.settings, model=options.model, corpus=options.corpus
    )
    words = ["python", "-m", "emolake.jobs", "annotate", *options.input, "--output", options.output]
    for key, value in _changed(config.model_dump(mode="json"), Config().model_dump(mode="json")):
        words += ["--set", f"{key}={json.dumps(value)}"]
    for setting in options.storage_options:
        words += ["--storage-option", setting]
    for name in ("run_id", "since"):
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", getattr(options, name)]
    for flag in ("reprocess", "retry_failed"):
        if getattr(options, flag):
            words.append(f"--{flag.replace('_', '-')}")
    return words


def _changed(
    tree: Mapping[str, Any], default: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any]]:
    """Dotted keys that differ from the defaults."""
    out: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out += _changed(value, default[name], f"{prefix}{name}.")
        elif value != default[name]:
            out.append((prefix + name, value))
    return out


def _runtime_env(options: argparse.Namespace) -> dict[str, Any]:
    environment: dict[str, Any] = {}
    if options.runtime_env is not None:
        try:
            environment = yaml.safe_load(Path(options.runtime_env).read_text()) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(
                f"--runtime-env {options.runtime_env} cannot be read: {_words(error)}"
            ) from None
        if not isinstance(environment, dict):
            raise UserError(f"--runtime-env {options.runtime_env} must hold key: value pairs")
    if options.working_dir is not None:
        if not Path(options.working_dir).is_dir():
            raise UserError(f"--working-dir {options.working_dir} is no folder")
        environment["working_dir"] = str(options.working_dir)
        environment.setdefault("excludes", _LEFT_OUT)
    return environment


def _client(address: str) -> JobSubmissionClient:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("submit needs Ray's client: pip install 'emolake[cluster]'") from None
    import ray

    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address} is no dashboard's URL, such as http://HOST:8265")
    try:
        client = JobSubmissionClient(address)
        theirs = str(client._server_ray_version or "")
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(f"--address {address} does not answer as Ray: {_words(error)}") from None
    if theirs and theirs != ray.__version__:
        raise UserError(
            f"{address} runs Ray {theirs}, this machine has {ray.__version__}; they must be the same"
        )
    return client


async def _follow(client: JobSubmissionClient, job: str, out: Any) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", file=out, flush=True)


def _exit_code(status: str, driver: int | None) -> int:
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return EXIT_INTERRUPTED
    return driver if driver is not None and 0 < driver < 256 else EXIT_FAILED


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _words(told: object) -> str:
    return " ".join(str(told).split())[:300]
