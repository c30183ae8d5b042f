"""What published checkpoints of several systems have in common: EVA's tower, LLaMA's names, LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from emolake.pipeline.errors import UserError
from emolake.pipeline.models.config import LanguageConfig, VisionConfig

LANGUAGE_PREFIXES = {
    "model.embed_tokens.": "language.model.embed_tokens.",
    "model.layers.": "language.model.layers.",
    "model.norm.": "language.model.norm.",
    "lm_head.": "language.lm_head.",
}
_EVA_PREFIXES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
}
_EVA_INSIDE = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
_EVA_UNUSED = ("norm.", "fc_norm.", "head.", "mask_token", "rel_pos_bias.")
"""Of EVA's own file; no system here reads what lies past its last block."""
_RECOMPUTED = re.compile(r"(\.position_ids|rotary_emb\.inv_freq)$")
_LORA = re.compile(r"^(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight$")


def language_config(published: Mapping[str, Any]) -> LanguageConfig:
    """LLaMA's fields of a published config.json."""
    get = published.get
    return LanguageConfig(
        vocab_size=published["vocab_size"],
        width=published["hidden_size"],
        depth=published["num_hidden_layers"],
        heads=published["num_attention_heads"],
        kv_heads=get("num_key_value_heads"),
        mlp_hidden=published["intermediate_size"],
        max_positions=get("max_position_embeddings", 4096),
        rms_norm_eps=get("rms_norm_eps", 1e-5),
        rope_theta=get("rope_theta", 10000.0),
    )


def eva_config(published: Mapping[str, Any], image_size: int = 224) -> VisionConfig:
    """EVA's sizes; a real checkpoint names none of them and has ViT-g, golden cases name them all."""
    get, eva = published.get, VisionConfig()
    return VisionConfig(
        image_size=get("image_size", image_size),
        patch_size=get("patch_size", eva.patch_size),
        width=get("vision_width", get("mm_hidden_size", eva.width)),
        depth=get("vision_depth", eva.depth),
        heads=get("vision_heads", eva.heads),
        mlp_hidden=get("vision_mlp_hidden", eva.mlp_hidden),
        layer_norm_eps=get("vision_layer_norm_eps", eva.layer_norm_eps),
    )


def eva_tensors(
    published: Mapping[str, Tensor], prefix: str, config: VisionConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """EVA's tensors under `prefix` by InstructBLIP's names, and all other tensors untouched.

    Blocks past those in use are left out (EVA ships 40, 39 serve); learned positions are resized to
    the config's grid; EVA keeps biases of query and value apart and has none of the key.
    """
    ours: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if not name.startswith(prefix):
            rest[name] = tensor
            continue
        inner = name[len(prefix) :]
        if inner.endswith((".q_bias", ".v_bias")) or _RECOMPUTED.search(inner):
            continue
        if inner.startswith(_EVA_UNUSED):
            continue
        start = next((p for p in _EVA_PREFIXES if inner.startswith(p)), None)
        if start is None:
            rest[name] = tensor
            continue
        new = _EVA_PREFIXES[start] + inner[len(start) :]
        for old, replacement in _EVA_INSIDE.items():
            new = new.replace(old, replacement)
        layer = re.match(r"encoder\.layers\.(\d+)\.", new)
        if layer is None or int(layer[1]) < config.depth:
            ours[new] = tensor
    for block in range(config.depth):
        part = f"{prefix}blocks.{block}.attn."
        if part + "q_bias" in published:
            query, value = published[part + "q_bias"], published[part + "v_bias"]
            bias = torch.cat([query, torch.zeros_like(query), value])
            ours[f"encoder.layers.{block}.self_attn.qkv.bias"] = bias
    position = "embeddings.position_embedding"
    if position in ours:
        ours[position] = resized_positions(ours[position], config.grid)
    return ours, rest


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """(1, 1 + g * g, C) learned positions -> a grid of another side, bicubic; the class stays."""
    side = math.isqrt(table.shape[1] - 1)
    if side == grid:
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    flat = resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([table[:, :1], flat], dim=1)


def lora_base(name: str) -> str | None:
    """The weight that a LoRA tensor belongs to; None for any other tensor."""
    match = _LORA.match(name)
    return f"{match['layer']}.weight" if match else None


def merged_lora(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """`X.lora_A`, `X.lora_B` added into `X.weight` (peft: W + alpha / r * B A), and the names of peft's
    wrapping (`.base_layer.`) gone. UserError where an adapter has no base to go to."""
    plain = {n.replace(".base_layer.", "."): t for n, t in tensors.items() if not _LORA.match(n)}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _LORA.match(name):
            halves.setdefault(match["layer"], {})[match["side"]] = tensor
    for layer, pair in halves.items():
        weight = f"{layer}.weight"
        if set(pair) != {"A", "B"} or weight not in plain:
            raise UserError(f"the LoRA tensors of {layer} have no base weight or are not a pair")
        low, high = pair["A"].float(), pair["B"].float()
        base = plain[weight]
        if (high.shape[0], low.shape[1]) != tuple(base.shape):
            raise UserError(
                f"the LoRA tensors of {layer} make {high.shape[0]} x {low.shape[1]}, the base is "
                f"{tuple(base.shape)}: an adapter of another base model"
            )
        plain[weight] = (base.float() + alpha / len(low) * (high @ low)).to(base.dtype)
    return plain


def renamed(
    published: Mapping[str, Tensor], rename: Callable[[str], str | None], layout: str
) -> dict[str, Tensor]:
    """Every tensor by its new name; UserError lists the names that `rename` does not know."""
    ours: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in published.items():
        if _RECOMPUTED.search(name):
            continue
        new = rename(name)
        if new is None:
            unknown.append(name)
        else:
            ours[new] = tensor
    if unknown:
        listed = ", ".join(sorted(unknown)[:8])
        raise UserError(f"{len(unknown)} tensors are not of {layout}'s layout: {listed}")
    return ours
