"""The families of models: config and network classes, and the layouts they were published in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from emolake.pipeline.models import emola, emotion_llama, llama_vid
from emolake.pipeline.models.config import ModelConfig
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.storage.weights import fill


@dataclass(frozen=True)
class Published:
    """A published layout. config: (its config.json, tensor name -> shape) -> ours; rename: (state
    dict by published names, our config) -> by ours; network: our config -> the module."""

    config: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    rename: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    network: Callable[[Any], nn.Module]


PUBLISHED = {
    "llama-vid": Published(llama_vid.config_from_published, llama_vid.rename, EmoLlama),
    "emola": Published(emola.config_from_published, emola.rename, emola.Emola),
    "emotion-llama": Published(
        emotion_llama.config_from_published, emotion_llama.rename, emotion_llama.EmotionLlama
    ),
}


def from_published(
    family: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> nn.Module:
    """A network filled from a published state dict; UserError lists the tensors that do not fit."""
    layout = PUBLISHED[family]
    ours: ModelConfig = layout.config(config, {k: tuple(v.shape) for k, v in weights.items()})
    network = layout.network(ours)
    fill(network, layout.rename(weights, ours))
    return network
