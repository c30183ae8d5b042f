"""`emolake submit`: the same job on a cluster, through the Ray Jobs API."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from emolake.jobs.cli import EXIT_FAILED, print_json
from emolake.jobs.graph.cluster import job_client
from emolake.jobs.interrupts import EXIT_INTERRUPTED, leave_to_asyncio
from emolake.jobs.options import load_config
from emolake.jobs.parser import Options, Parser, address_option, input_options, run_id_option
from emolake.pipeline.config import Config
from emolake.pipeline.errors import JobFailed, UserError, in_a_line
from emolake.pipeline.storage.files import parse_options
from emolake.pipeline.storage.names import unsigned

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_HARMLESS = re.compile(
    r"endpoint_url|anon|profile|requester_pays|use_ssl|version_aware|default_block_size|block_size|encoded|project"
    r"|region|location|account_name|consistency|max_concurrency|listings_expiry_time|use_listings_cache"
    r"|default_(fill_cache|cache_type)|config_kwargs\.(?!.*(password|secret|token|prox)).+"
    r"|client_kwargs\.(endpoint_url|region_name|verify|use_ssl)"
)
"""Storage options that hold no secret, whoever reads them."""
_LEFT_OUT = [
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "demo",
    "**/__pycache__",
]


def declare(parser: Parser) -> None:
    input_options(parser)
    run_id_option(parser)
    address_option(parser)
    parser.flag("--no-wait", "do not follow it")
    parser.option("--submission-id", "ID", "name of the job on the cluster")
    parser.option(
        "--working-dir", "DIR", "sent along, where the cluster's image has no emolake", type=Path
    )
    parser.option("--runtime-env", "FILE", "YAML of a Ray runtime environment", type=Path)
    parser.option("--entrypoint-cpus", "N", "CPUs kept for the driver (default: 0)", type=float)
    parser.calls(
        run, "emolake submit s3://archive/ --output s3://lake/emotions --address http://HOST:8265"
    )


def run(options: Options) -> int:
    entrypoint = shlex.join(annotate_arguments(options))
    runtime_env = _runtime_env(options)
    client = job_client(options.address)
    try:
        job = client.submit_job(
            entrypoint=entrypoint,
            submission_id=options.submission_id,
            runtime_env=runtime_env,
            entrypoint_num_cpus=options.entrypoint_cpus,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{options.address} did not take the job: {in_a_line(error, 300)}"
        ) from None
    print(f"submitted {job} to {options.address}", file=sys.stderr)
    if options.no_wait:
        if options.json:
            print_json({"submission_id": job, "status": "PENDING", "exit_code": None})
        return 0
    try:
        leave_to_asyncio()
        asyncio.run(_follow(client, job, sys.stderr if options.json else sys.stdout))
    except KeyboardInterrupt:
        print(f"{job} goes on; stop it with: ray job stop {job}", file=sys.stderr)
        raise
    except Exception as error:
        raise JobFailed(
            f"{job} can be followed no more, it may go on: {in_a_line(error, 300)}"
        ) from None
    info = client.get_job_info(job)
    code = _exit_code(str(info.status), info.driver_exit_code)
    if options.json:
        print_json({"submission_id": job, "status": str(info.status), "exit_code": code})
    elif code:
        told = info.message or "see its log"
        print(
            f"emolake: {job} ended with exit code {code}: {in_a_line(told, 300)}", file=sys.stderr
        )
    return code


def annotate_arguments(options: Options) -> list[str]:
    """The command line for the cluster. What file, environment and --set say here goes along as --set,
    so the job needs no file of this machine. UserError for credentials: arguments of a job can be
    read by everyone who sees the dashboard."""
    parse_options(options.storage_options)
    for setting in options.storage_options:
        name, _, value = setting.partition("=")
        if not _HARMLESS.fullmatch(name) or in_a_line(value) != value:
            raise UserError(
                f"--storage-option {in_a_line(name)} would stand in the job's arguments, for many to read; "
                "give the cluster its own credentials (an instance role, or a secret in its environment)"
            )
    for name in (*options.input, options.output):
        if unsigned(name) != name or in_a_line(name) != name:
            raise UserError(
                f"{in_a_line(unsigned(name))} is named with what opens it (a password or a signature), which "
                "would stand in the job's arguments; name it in a manifest that the cluster can read"
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
        if isinstance(value, Mapping) and isinstance(default[name], Mapping):
            out += _changed(value, default[name], f"{prefix}{name}.")
        elif value != default[name]:
            out.append((prefix + name, value))
    return out


def _runtime_env(options: Options) -> dict[str, Any]:
    environment: dict[str, Any] = {}
    if options.runtime_env is not None:
        try:
            environment = yaml.safe_load(Path(options.runtime_env).read_text()) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(
                f"--runtime-env {options.runtime_env} cannot be read: {in_a_line(error, 300)}"
            ) from None
        if not isinstance(environment, dict):
            raise UserError(f"--runtime-env {options.runtime_env} must hold key: value pairs")
    if options.working_dir is not None:
        if not Path(options.working_dir).is_dir():
            raise UserError(f"--working-dir {options.working_dir} is no folder")
        environment["working_dir"] = str(options.working_dir)
        environment.setdefault("excludes", _LEFT_OUT)
    return environment


async def _follow(client: JobSubmissionClient, job: str, out: Any) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", file=out, flush=True)


def _exit_code(status: str, driver: int | None) -> int:
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return EXIT_INTERRUPTED
    return driver if driver is not None and 0 < driver < 256 else EXIT_FAILED
