"""`emolake publish`: the tables as Apache Iceberg."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from emolake.jobs.cli import print_json
from emolake.pipeline.errors import JobFailed, UserError, cannot_write
from emolake.pipeline.lake.iceberg import open_catalog, publish
from emolake.pipeline.lake.layout import LEDGER, RUNS, Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.storage.files import Storage, parse_options


def publish_command(options: argparse.Namespace) -> int:
    storage = Storage(parse_options(options.storage_options))
    lake = Lake.at(options.output, storage)
    try:
        if not lake.files(LEDGER):
            raise UserError(f"{lake.uri} holds no run; name the --output of an annotate")
        catalog = open_catalog(options.catalog, lake, storage.options)
        lease = Lease.acquire(lake, "publish")
        try:
            done = publish(lake, catalog, options.namespace, _last_run(lake), lease.fence)
        finally:
            lease.release()
    except OSError as error:
        raise JobFailed(cannot_write(lake.uri, error)) from error
    if options.json:
        print_json({"output": lake.uri, "tables": [asdict(table) for table in done]})
        return 0
    for table in done:
        what = (
            f"snapshot {table.snapshot_id}: {table.segments_added} segments added, "
            f"{table.segments_removed} taken out"
            if table.snapshot_id is not None
            else "nothing new"
        )
        print(f"{options.namespace}.{table.table}: {what}")
    return 0


def _last_run(lake: Lake) -> str:
    paths = lake.fs.glob(lake.path(RUNS, "*", "run.json"))
    runs: list[dict[str, Any]] = [json.loads(lake.fs.cat_file(path)) for path in paths]
    return str(max(runs, key=lambda run: str(run["finished_at"]))["run_id"]) if runs else "unknown"
