"""LLaMA-VID's cases: weights, inputs and expected stages as safetensors with keys `s<i>.<name>`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.golden.cases import TOLERANCE, StageCheck, read_tensors, relative_difference
from pipeline.models import llama_vid
from pipeline.models.emo_llama import EmoLlama
from pipeline.models.loading import fill
from pipeline.models.scoring import greedy

Stages = dict[str, Tensor]
_ORDER = ("vision_features", "qformer_output", "frame_tokens", "inputs_embeds", "logits")


@torch.inference_mode()
def verify_llama_vid(folder: Path, config: dict[str, Any]) -> list[StageCheck]:
    """Every stage that the case expects, in the order data meets them."""
    inputs = _by_sample(read_tensors(folder / "inputs.safetensors"))
    expected = _by_sample(read_tensors(folder / "expected.safetensors"))
    weights = read_tensors(folder / "weights.safetensors")
    worst: dict[str, float] = {}
    for sample, ours in _run(config, weights, inputs, expected):
        for stage, wanted in expected[sample].items():
            if stage not in ours:
                raise UserError(f"{folder}: expected stage {stage!r} is not one that LLaMA-VID has")
            difference = relative_difference(ours[stage], wanted)
            worst[stage] = max(worst.get(stage, 0.0), difference)
    names = sorted(worst, key=lambda s: (_ORDER.index(s) if s in _ORDER else len(_ORDER), s))
    return [StageCheck(s, worst[s], 0.0 if s.endswith("_ids") else TOLERANCE) for s in names]


def _run(
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


def _by_sample(tensors: dict[str, Tensor]) -> dict[str, Stages]:
    samples: dict[str, Stages] = {}
    for key in sorted(tensors):
        sample, _, name = key.partition(".")
        samples.setdefault(sample, {})[name] = tensors[key]
    return samples
