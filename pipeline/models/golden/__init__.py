"""Golden cases: what published reference implementations computed, against our arithmetic.

A case is a folder with config.json, whose `family` says which model it is of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emolake.pipeline.errors import UserError
from emolake.pipeline.models.golden.cases import StageCheck, read_json
from emolake.pipeline.models.golden.retinaface import verify_retinaface
from emolake.pipeline.models.golden.systems import FAMILIES, verify_system

__all__ = ["StageCheck", "verify"]

_FAMILIES: dict[str, Callable[[Path, dict[str, Any]], list[StageCheck]]] = {
    **dict.fromkeys(FAMILIES, verify_system),
    "retinaface-resnet50": verify_retinaface,
    "retinaface-mobilenet0.25": verify_retinaface,
}


def verify(folder: Path) -> list[StageCheck]:
    """Runs a case and compares every expected stage. UserError where it is no known case."""
    config = read_json(folder / "config.json")
    run = _FAMILIES.get(str(config.get("family")))
    if run is None:
        known = ", ".join(sorted(_FAMILIES))
        raise UserError(
            f"{folder}/config.json: family {config.get('family')!r} is unknown; known: {known}"
        )
    return run(folder, config)
