"""`emolake compact`: small files become large ones."""

from __future__ import annotations

import time

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import holding
from emolake.pipeline.lake.reading import refuse_unless_used
from emolake.pipeline.storage.files import Storage, parse_options

_MEGABYTE = 1 << 20


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option("--target-mb", "MB", "size of a file to aim at", type=int, default=256)
    storage_option(parser)
    parser.calls(run, "emolake compact s3://lake/emotions")


def run(options: Options) -> int:
    lake = Lake.at(options.output, Storage(parse_options(options.storage_options)))
    if options.target_mb < 1:
        raise UserError(f"--target-mb {options.target_mb} must be at least 1")
    try:
        refuse_unless_used(lake)
        started = time.monotonic()
        with holding(lake, "compact") as fence:
            done = compact(lake, fence, options.target_mb * _MEGABYTE)
    except OSError as error:
        raise JobFailed(lake.cannot_write(error)) from error
    seconds = round(time.monotonic() - started, 2)
    told = {"files_before": done.files_before, "files_after": done.files_after, "seconds": seconds}
    line = f"{lake.uri}: {done.files_before} files -> {done.files_after} in {seconds} s"
    return tell(options, {"output": lake.uri} | told, line)
