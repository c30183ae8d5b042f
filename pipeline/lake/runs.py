"""The records of runs that ended."""

from __future__ import annotations

import json
from typing import Any

from emolake.pipeline.lake.layout import RUNS, Lake


def read_runs(lake: Lake) -> list[dict[str, Any]]:
    """Every run.json of the output, the one that ended last first."""
    paths = lake.fs.glob(lake.path(RUNS, "*", "run.json"))
    runs = [json.loads(lake.fs.cat_file(path)) for path in paths]
    return sorted(runs, key=lambda run: str(run.get("finished_at")), reverse=True)
