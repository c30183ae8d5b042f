"""Who is where in a clip, as a person noted it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError

Truth = dict[str, list[dict[str, Any]]]
"""Name of a clip -> its people: start_s, end_s, level, boxes as [time, x1, y1, x2, y2] in pixels."""


def read_truth(given: Path | None, clips: list[Path]) -> Truth:
    """The people of each clip; empty where no truth file is given or lies beside the clips."""
    path = given or clips[0].parent / "truth.json"
    if given is None and not path.is_file():
        return {}
    try:
        return {
            name: told["tracks"] for name, told in json.loads(path.read_text())["clips"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--truth {path} is no truth file: {error}") from None


def true_box(person: dict[str, Any], time_s: float) -> NDArray[np.float32]:
    """(4,) box in pixels at a time, interpolated between the ones that were noted."""
    noted = np.array(person["boxes"], np.float64)
    return np.array([np.interp(time_s, noted[:, 0], noted[:, k]) for k in range(1, 5)], np.float32)
