"""Golden cases: a tiny model with random weights, its inputs, and what the reference computed.

A case folder holds config.json (sizes, `family`), weights.safetensors under the published names,
inputs.safetensors and expected.safetensors with keys `s<i>.<name>`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models import llama_vid
from pipeline.models.emo_llama import EmoLlama
from pipeline.models.loading import fill
from pipeline.models.scoring import greedy

TOLERANCE = 1e-4


@dataclass(frozen=True)
class StageCheck:
    """One stage against the reference, over all samples of the case.

    difference: max |ours - expected| / max |expected|; for ids, the share that differs.
    """

    stage: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance


Stages = dict[str, Tensor]
Case = tuple[dict[str, Any], dict[str, Tensor]]


@torch.inference_mode()
def verify(folder: Path) -> list[StageCheck]:
    """Runs a case and compares every expected stage. UserError where it is no known case."""
    config = _read_json(folder / "config.json")
    family = config.get("family")
    runner = _RUNNERS.get(str(family))
    if runner is None:
        known = ", ".join(sorted(_RUNNERS))
        raise UserError(f"{folder}/config.json: family {family!r} is unknown; known: {known}")
    inputs = _by_sample(_read_tensors(folder / "inputs.safetensors"))
    expected = _by_sample(_read_tensors(folder / "expected.safetensors"))
    weights = _read_tensors(folder / "weights.safetensors")
    worst: dict[str, float] = {}
    for sample, ours in runner(config, weights, inputs, expected):
        for stage, wanted in expected[sample].items():
            if stage not in ours:
                raise UserError(f"{folder}: expected stage {stage!r} is not one that {family} has")
            worst[stage] = max(worst.get(stage, 0.0), _difference(ours[stage], wanted))
    order = ["vision_features", "qformer_output", "frame_tokens", "inputs_embeds", "logits"]
    names = sorted(worst, key=lambda s: (order.index(s) if s in order else len(order), s))
    return [StageCheck(s, worst[s], 0.0 if s.endswith("_ids") else TOLERANCE) for s in names]


def _difference(ours: Tensor, expected: Tensor) -> float:
    if ours.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float((ours != expected).float().mean())
    return float((ours.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _run_llama_vid(
    config: dict[str, Any],
    weights: dict[str, Tensor],
    inputs: dict[str, Stages],
    expected: dict[str, Stages],
) -> Iterator[tuple[str, Stages]]:
    ours = llama_vid.config_from_published(config, {k: tuple(v.shape) for k, v in weights.items()})
    model = EmoLlama(ours)
    fill(model, llama_vid.rename(weights, ours))
    model.eval()
    for sample, given in inputs.items():
        encoded = model.encode_frames(given["pixel_values"], given["qformer_input_ids"])
        visual = model.visual_tokens(encoded.frame_tokens[None], None, None)
        embeds = model.splice(given["input_ids"], visual)
        steps = len(expected[sample].get("greedy_ids", ()))
        yield (
            sample,
            {
                "vision_features": encoded.vision_features,
                "qformer_output": encoded.qformer_output,
                "frame_tokens": encoded.frame_tokens,
                "inputs_embeds": embeds[0],
                "logits": model.language(inputs_embeds=embeds).logits[0],
                "greedy_ids": greedy(model, embeds, steps)[0],
            },
        )


_RUNNERS: dict[str, Callable[..., Iterator[tuple[str, Stages]]]] = {"llama-vid": _run_llama_vid}


def _by_sample(tensors: dict[str, Tensor]) -> dict[str, Stages]:
    samples: dict[str, Stages] = {}
    for key in sorted(tensors):
        sample, _, name = key.partition(".")
        samples.setdefault(sample, {})[name] = tensors[key]
    return samples


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path} cannot be read; name a golden case's folder") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError:
        raise UserError(f"{path} cannot be read; the case is not complete") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
