"""`emolake compact`: small files become large ones."""

from __future__ import annotations

import argparse
import time

from emolake.jobs.cli import print_json
from emolake.pipeline.errors import JobFailed, UserError, cannot_write
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.layout import LEDGER, Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.storage.files import Storage, parse_options

_MEGABYTE = 1 << 20


def compact_command(options: argparse.Namespace) -> int:
    lake = Lake.at(options.output, Storage(parse_options(options.storage_options)))
    if options.target_mb < 1:
        raise UserError(f"--target-mb {options.target_mb} must be at least 1")
    try:
        if not lake.files(LEDGER):
            raise UserError(f"{lake.uri} holds no run; name the --output of an annotate")
        started = time.monotonic()
        lease = Lease.acquire(lake, "compact")
        try:
            done = compact(lake, lease.fence, options.target_mb * _MEGABYTE)
        finally:
            lease.release()
    except OSError as error:
        raise JobFailed(cannot_write(lake.uri, error)) from error
    seconds = round(time.monotonic() - started, 2)
    told = {"files_before": done.files_before, "files_after": done.files_after, "seconds": seconds}
    if options.json:
        print_json({"output": lake.uri} | told)
    else:
        print(f"{lake.uri}: {done.files_before} files -> {done.files_after} in {seconds} s")
    return 0
