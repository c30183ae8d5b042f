"""The cases of LLaMA-VID, EmoLA and Emotion-LLaMA: a tiny model each, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.emola import Emola
from emolake.pipeline.models.emotion_llama import EmotionLlama
from emolake.pipeline.models.families import from_published
from emolake.pipeline.models.golden.cases import StageCheck, Stages, verify_samples
from emolake.pipeline.models.scoring import Prefill

_ORDER = (
    *("vision_features", "qformer_output", "frame_tokens", "landmark_token", "multimodal_tokens"),
    *("inputs_embeds", "logits"),
)


def verify_system(folder: Path, config: Mapping[str, Any]) -> list[StageCheck]:
    """Every stage that the case expects, in the order data meets them."""
    with torch.inference_mode():
        return verify_samples(
            folder,
            lambda weights: from_published(config["family"], config, weights).eval(),
            _RUN[config["family"]],
            _ORDER,
        )


def _llama_vid(model: EmoLlama, given: Stages, steps: int) -> Stages:
    encoded = model.encode_frames(given["pixel_values"], given["qformer_input_ids"])
    visual = model.visual_tokens(encoded.frame_tokens[None], None, None)
    return {
        "vision_features": encoded.vision_features,
        "qformer_output": encoded.qformer_output,
        "frame_tokens": encoded.frame_tokens,
    } | _answered(model.language, model.splice(given["input_ids"], visual), steps)


def _emola(model: Emola, given: Stages, steps: int) -> Stages:
    pixels, landmarks = given["pixel_values"], given["landmark_features"]
    return {
        "vision_features": model.vision(pixels),
        "landmark_token": model.landmark_token(landmarks)[0],
    } | _answered(
        model.language,
        model.splice(given["input_ids"], model.visual_tokens(pixels, landmarks)),
        steps,
    )


def _emotion_llama(model: EmotionLlama, given: Stages, steps: int) -> Stages:
    tokens = model.multimodal_tokens(given["pixel_values"], given["features"][None])
    before, between, after = (
        given[name] for name in ("ids_before_video", "ids_between", "ids_after")
    )
    embeds = model.splice(before, between, after, tokens)
    return {"multimodal_tokens": tokens[0]} | _answered(model.language, embeds, steps)


def _answered(language: LlamaForCausalLM, embeds: Tensor, steps: int) -> Stages:
    return {
        "inputs_embeds": embeds[0],
        "logits": language(inputs_embeds=embeds).logits[0],
        "greedy_ids": torch.tensor(Prefill(language, embeds).written(steps)[0]),
    }


_RUN: dict[str, Callable[[Any, Stages, int], Stages]] = {
    "llama-vid": _llama_vid,
    "emola": _emola,
    "emotion-llama": _emotion_llama,
}
FAMILIES = tuple(_RUN)
