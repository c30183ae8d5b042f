"""The records of runs: written as `running` before the first row, and anew at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow.compute as pc

from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.layout import RUNS, Lake
from emolake.pipeline.lake.lease import LeaseLost
from emolake.pipeline.storage.files import contents, exists, write_whole
from emolake.pipeline.storage.shards import Shards


def read_runs(lake: Lake) -> list[dict[str, Any]]:
    """The run.json of each run that ended, the last first."""
    runs = [json.loads(record) for record in contents(lake.fs, lake.run_records()).values()]
    told = [run for run in runs if run.get("finished_at")]
    return sorted(told, key=lambda run: str(run.get("finished_at")), reverse=True)


def write_run(lake: Lake, run: dict[str, Any]) -> None:
    record = json.dumps(run, indent=2, default=str).encode()
    write_whole(lake.fs, _path(lake, run["run_id"]), record)


def end_run(
    lake: Lake, run_id: str, error: str, told: Mapping[str, Any], fence: Callable[[], None]
) -> None:
    """Says in its record that a run has failed, and what is told of it besides; best effort, for nothing else
    can be done by then. Whoever has the output by then may have taken names out of the record: it stays."""
    with suppress(OSError, ValueError, LeaseLost):
        fence()
        record = json.loads(lake.fs.cat_file(_path(lake, run_id)))
        if record.get("state") == "running":
            write_run(lake, record | {"state": "failed", "error": error} | dict(told))


def refuse_other_run(lake: Lake, run_id: str, config_hash: str) -> None:
    """UserError where a run of another configuration had this id: rows are traced by it."""
    path = _path(lake, run_id)
    if not exists(lake.fs, path):
        return
    before = json.loads(lake.fs.cat_file(path))["config_hash"]
    if before != config_hash:
        raise UserError(
            f"--run-id {run_id} was a run of another configuration ({before}); choose another id"
        )


def refuse_other_precision(lake: Lake, ledger: Shards, record: dict[str, Any]) -> None:
    """UserError where the newest rows of the same configuration were computed in another precision: on a
    GPU, say, where none was chosen, and this run has none. ledger: see `ledger_shards`."""
    newest = (-1, "")
    for rows in ledger.parts():
        alike = rows.filter(pc.equal(rows["config_hash"], record["config_hash"]))
        for lease, run_id in zip(*(alike[n].to_pylist() for n in ("lease", "run_id")), strict=True):
            newest = max(newest, (lease or 0, run_id))
    path = _path(lake, newest[1])
    if not newest[1] or not exists(lake.fs, path):
        return
    last = json.loads(lake.fs.cat_file(path))
    if last.get("precision", record["precision"]) != record["precision"]:
        raise UserError(
            f"run {last['run_id']} computed the rows of this output in {last['precision']}, this one would "
            f"in {record['precision']}; run it on the same kind of machine, or choose annotator.precision "
            "and give --reprocess"
        )


def _path(lake: Lake, run_id: str) -> str:
    return lake.path(RUNS, run_id, "run.json")
