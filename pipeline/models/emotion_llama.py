"""Emotion-LLaMA (arXiv 2406.11161): MiniGPT-v2 with features of the face, the clip and its sound.

The EVA tower and LLaMA are `transformers` modules. Ours is the order of the tokens: one frame's
patches joined four by four, then FaceMAE, VideoMAE, audio, and the frame's class token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emolake.pipeline.models.config import EmotionLlamaConfig
from emolake.pipeline.models.language import causal_language
from emolake.pipeline.models.published import (
    LANGUAGE_PREFIXES,
    eva_config,
    eva_tensors,
    language_config,
    merged_lora,
    renamed,
)
from emolake.pipeline.models.vision import VisionTower

FEATURES = ("face_mae", "video_mae", "audio")


class EmotionLlama(nn.Module):
    """A frame, three features of its clip and a prompt -> next-token logits."""

    def __init__(self, config: EmotionLlamaConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        width = config.language.width
        self.vision = VisionTower(config.vision, attention)
        self.image_projection = nn.Linear(config.join * config.vision.width, width)
        self.feature_projections = nn.ModuleList(
            [nn.Linear(config.feature_dim, width) for _ in FEATURES]
        )
        self.class_projection = nn.Linear(config.vision.width, width)
        self.language = causal_language(config.language, attention)

    def multimodal_tokens(self, pixel_values: Tensor, features: Tensor) -> Tensor:
        """pixel_values (B, 3, H, W) normalised, features (B, 3, F) in the order of FEATURES
        -> (B, P / join + 4, D): image tokens, the three features, the class token."""
        seen = self.vision.normed(self.vision(pixel_values))
        joined = seen[:, 1:].unflatten(1, (-1, self.config.join)).flatten(2)
        clip = [project(features[:, k]) for k, project in enumerate(self.feature_projections)]
        return torch.cat(
            [
                self.image_projection(joined),
                torch.stack(clip, dim=1),
                self.class_projection(seen[:, :1]),
            ],
            dim=1,
        )

    def splice(self, before: Tensor, between: Tensor, after: Tensor, tokens: Tensor) -> Tensor:
        """Prompt ids (b,), (m,) and (a,) or (B, a) round the video's and the features' place, tokens
        (B, v, D) -> (B, b + m + a + v, D)."""
        embed = self.language.get_input_embeddings()
        text = [embed(ids).expand(len(tokens), -1, -1) for ids in (before, between, after)]
        last = len(FEATURES) + 1
        tokens = tokens.to(text[0].dtype)
        return torch.cat([text[0], tokens[:, :-last], text[1], tokens[:, -last:], text[2]], dim=1)


_TOWER = "visual_encoder."
WRAPPED = "llama_model.base_model.model."
"""How peft names the language model in the published checkpoint."""
_PREFIXES = {
    "ln_vision.": "vision.model.post_layernorm.",
    "llama_proj.": "image_projection.",
    "cls_tk_llama_proj.": "class_projection.",
    **{f"feats_llama_proj{k + 1}.": f"feature_projections.{k}." for k in range(len(FEATURES))},
    **LANGUAGE_PREFIXES,
}


def config_from_published(
    published: Mapping[str, Any], shapes: Mapping[str, Any]
) -> EmotionLlamaConfig:
    """The base model's config.json (Llama-2-chat's) -> ours; the features' length is read off a
    projection. The names beside LLaMA's (vision_width, ...) are those of the golden cases."""
    features = shapes.get("feats_llama_proj1.weight")
    return EmotionLlamaConfig(
        vision=eva_config(published, EmotionLlamaConfig().vision.image_size),
        language=language_config(published),
        feature_dim=features[1] if features else EmotionLlamaConfig().feature_dim,
        lora_alpha=published.get("lora_alpha") or EmotionLlamaConfig().lora_alpha,
    )


def rename(published: Mapping[str, Tensor], config: EmotionLlamaConfig) -> dict[str, Tensor]:
    """State dict of the base, the tower and the trained parts together -> ours, LoRA merged.

    The base's names may stand as in Llama-2's own files or under peft's wrapping.
    """
    bare = {name.removeprefix(WRAPPED): tensor for name, tensor in published.items()}
    tower, rest = eva_tensors(merged_lora(bare, config.lora_alpha), _TOWER, config.vision)
    return {f"vision.model.{name}": tensor for name, tensor in tower.items()} | renamed(
        rest, _renamed, "Emotion-LLaMA"
    )


def _renamed(name: str) -> str | None:
    for prefix, ours in _PREFIXES.items():
        if name.startswith(prefix):
            return ours + name[len(prefix) :]
    return None
