"""The records of runs that ended."""

from __future__ import annotations

import json
from typing import Any

from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.layout import RUNS, Lake
from emolake.pipeline.storage.files import write_whole


def read_runs(lake: Lake) -> list[dict[str, Any]]:
    """Every run.json of the output, the one that ended last first."""
    paths = lake.fs.glob(_path(lake, "*"))
    runs = [json.loads(lake.fs.cat_file(path)) for path in paths]
    return sorted(runs, key=lambda run: str(run.get("finished_at")), reverse=True)


def write_run(lake: Lake, run: dict[str, Any]) -> None:
    record = json.dumps(run, indent=2, default=str).encode()
    write_whole(lake.fs, _path(lake, run["run_id"]), record)


def refuse_other_run(lake: Lake, run_id: str, config_hash: str) -> None:
    """UserError where a run of another configuration had this id: rows are traced by it."""
    path = _path(lake, run_id)
    if not lake.fs.exists(path):
        return
    before = json.loads(lake.fs.cat_file(path))["config_hash"]
    if before != config_hash:
        raise UserError(
            f"--run-id {run_id} was a run of another configuration ({before}); choose another id"
        )


def _path(lake: Lake, run_id: str) -> str:
    return lake.path(RUNS, run_id, "run.json")
