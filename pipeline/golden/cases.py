"""What the cases of all families share: files in, differences out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError

TOLERANCE = 1e-4


@dataclass(frozen=True)
class StageCheck:
    """One stage against the reference, over all samples of the case."""

    stage: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance


def relative_difference(ours: Tensor, expected: Tensor) -> float:
    """max |ours - expected| / max |expected|; for integers the share that differs; inf by shape."""
    if ours.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float((ours != expected).float().mean())
    return float((ours.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path} cannot be read; name a golden case's folder") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError:
        raise UserError(f"{path} cannot be read; the case is not complete") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
