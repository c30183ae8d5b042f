"""What the cases of all families share: files in, differences out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from emolake.pipeline.errors import UserError

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


Model = TypeVar("Model")
Stages = dict[str, Tensor]
"""One sample's tensors by name."""


def verify_samples(
    folder: Path,
    load: Callable[[dict[str, Tensor]], Model],
    run: Callable[[Model, Stages, int], Stages],
    order: tuple[str, ...],
) -> list[StageCheck]:
    """Cases with weights, inputs and expected stages as safetensors, keys `s<i>.<name>`.

    load: weights by their published names -> a model; run: (model, a sample's inputs, greedy steps)
    -> its stages. order: of the stages told.
    """
    inputs = _by_sample(read_tensors(folder / "inputs.safetensors"))
    expected = _by_sample(read_tensors(folder / "expected.safetensors"))
    model = load(read_tensors(folder / "weights.safetensors"))
    worst: dict[str, float] = {}
    for sample, wanted in expected.items():
        ours = run(model, inputs[sample], len(wanted.get("greedy_ids", ())))
        for stage, tensor in wanted.items():
            if stage not in ours:
                raise UserError(f"{folder}: expected stage {stage!r} is not one of this family")
            worst[stage] = max(worst.get(stage, 0.0), relative_difference(ours[stage], tensor))
    names = sorted(worst, key=lambda s: (order.index(s) if s in order else len(order), s))
    return [StageCheck(s, worst[s], 0.0 if s.endswith("_ids") else TOLERANCE) for s in names]


def _by_sample(tensors: dict[str, Tensor]) -> dict[str, Stages]:
    samples: dict[str, Stages] = {}
    for key in sorted(tensors):
        sample, _, name = key.partition(".")
        samples.setdefault(sample, {})[name] = tensors[key]
    return samples


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
