"""EmoLA (arXiv 2404.05052): LLaVA-1.5 that also reads a face's landmark features.

CLIP and LLaMA are `transformers` modules. Ours is the order of the tokens: the picture's patches, then
one token of the landmark network's features, at the prompt's image placeholder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from emolake.pipeline.errors import UserError
from emolake.pipeline.models.config import ClipConfig, EmolaConfig
from emolake.pipeline.models.language import causal_language, spliced
from emolake.pipeline.models.published import (
    LANGUAGE_PREFIXES,
    language_config,
    merged_lora,
    renamed,
)


class Emola(nn.Module):
    """A face, its landmark features and a prompt -> next-token logits."""

    def __init__(self, config: EmolaConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        width = config.language.width
        self.vision = ClipPatches(config.vision, attention)
        self.image_projection = _two_layers(config.vision.width, width)
        self.landmark_projection = _two_layers(config.landmark_dim, width)
        self.language = causal_language(config.language, attention)

    def landmark_token(self, features: Tensor) -> Tensor:
        """features (B, L) of the landmark network -> (B, 1, D)."""
        out: Tensor = self.landmark_projection(features)[:, None]
        return out

    def visual_tokens(self, pixel_values: Tensor, landmark_features: Tensor) -> Tensor:
        """pixel_values (B, 3, H, W) normalised, landmark_features (B, L) -> (B, P + 1, D)."""
        patches = self.image_projection(self.vision(pixel_values))
        return torch.cat([patches, self.landmark_token(landmark_features)], dim=1)

    def splice(self, prompt_ids: Tensor | tuple[int, ...], visual_tokens: Tensor) -> Tensor:
        """prompt_ids (m,) with one IMAGE_TOKEN, visual_tokens (B, v, D) -> (B, m - 1 + v, D)."""
        return spliced(self.language, prompt_ids, visual_tokens)


class ClipPatches(nn.Module):
    """Pictures (B, 3, H, W) -> patch features (B, P, C) of CLIP's selected hidden state, without its
    class token and before any final norm."""

    def __init__(self, config: ClipConfig, attention: str) -> None:
        super().__init__()
        clip = CLIPVisionConfig(  # type: ignore[call-arg]
            hidden_size=config.width,
            intermediate_size=config.mlp_hidden,
            num_hidden_layers=config.used_depth,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            attn_implementation=attention,
        )
        self.model = CLIPVisionModel(clip)
        self.model.post_layernorm = nn.Identity()  # type: ignore[assignment]

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values).last_hidden_state
        return hidden[:, 1:]


def _two_layers(before: int, after: int) -> nn.Sequential:
    """LLaVA's mlp2x_gelu."""
    return nn.Sequential(nn.Linear(before, after), nn.GELU(), nn.Linear(after, after))


_TOWER = "model.vision_tower.vision_tower.vision_model."
_PREFIXES = {
    "model.mm_projector.": "image_projection.",
    "model.landmark_feature_projector.": "landmark_projection.",
    _TOWER: "vision.model.",
    **LANGUAGE_PREFIXES,
}


def config_from_published(published: Mapping[str, Any], shapes: Mapping[str, Any]) -> EmolaConfig:
    """A published config.json (LLaVA's) -> ours; the landmark features' length is read off the
    projector. The names beside LLaVA's (vision_width, ...) are those of the golden cases."""
    get, clip = published.get, ClipConfig()
    for key, only in (("mm_vision_select_feature", "patch"), ("mm_projector_type", "mlp2x_gelu")):
        if get(key, only) != only:
            raise UserError(f"{key} must be {only!r}; {get(key)!r} is not EmoLA")
    projector = shapes.get("model.landmark_feature_projector.0.weight")
    select = get("mm_vision_select_layer", get("vision_select_layer", clip.select_layer))
    return EmolaConfig(
        vision=ClipConfig(
            image_size=get("image_size", clip.image_size),
            patch_size=get("patch_size", clip.patch_size),
            width=get("vision_width", get("mm_hidden_size", clip.width)),
            depth=get("vision_depth", clip.depth),
            heads=get("vision_heads", clip.heads),
            mlp_hidden=get("vision_mlp_hidden", clip.mlp_hidden),
            select_layer=select,
        ),
        language=language_config(published),
        landmark_dim=projector[1] if projector else EmolaConfig().landmark_dim,
        lora_alpha=get("lora_alpha") or EmolaConfig().lora_alpha,
    )


def rename(published: Mapping[str, Tensor], config: EmolaConfig) -> dict[str, Tensor]:
    """Published state dict -> ours, LoRA merged, without CLIP's layers past the selected one."""
    vision = config.vision
    past = range(vision.used_depth, vision.depth)
    unused = (
        *(f"{_TOWER}encoder.layers.{layer}." for layer in past),
        f"{_TOWER}post_layernorm.",
    )
    used = {name: tensor for name, tensor in published.items() if not name.startswith(unused)}
    return renamed(merged_lora(used, config.lora_alpha), _renamed, "EmoLA")


def _renamed(name: str) -> str | None:
    for prefix, ours in _PREFIXES.items():
        if name.startswith(prefix):
            return ours + name[len(prefix) :]
    return None
