"""Published LLaMA-VID checkpoints: their config fields and tensor names, mapped to ours.

Names and layout: dvlab-research/LLaMA-VID (arXiv 2311.17043), llama-vid-7b-full-224-video-fps-1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.models.config import LanguageConfig, ModelConfig, QFormerConfig, VisionConfig

_TOWER = "model.vision_tower.vision_tower."
_BERT = "model.vlm_att_encoder.bert."

_PREFIXES = {
    _TOWER + "cls_token": "vision.model.embeddings.class_embedding",
    _TOWER + "pos_embed": "vision.model.embeddings.position_embedding",
    _TOWER + "patch_embed.proj.": "vision.model.embeddings.patch_embedding.",
    _TOWER + "blocks.": "vision.model.encoder.layers.",
    _BERT: "qformer.",
    "model.vlm_att_query": "query_tokens",
    "model.vlm_att_ln.": "vision.model.post_layernorm.",
    "model.vlm_att_projector.": "text_projection.",
    "model.vlm_att_key_projector.": "key_projection.",
    "model.vlm_att_val_projector.": "value_projection.",
    "model.mm_projector.": "content_projection.",
    "model.embed_tokens.": "language.model.embed_tokens.",
    "model.layers.": "language.model.layers.",
    "model.norm.": "language.model.norm.",
    "lm_head.": "language.lm_head.",
}
_INSIDE_TOWER = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
_INSIDE_BERT = {
    "embeddings.LayerNorm.": "embeddings.layernorm.",
    "attention.self.": "attention.attention.",
}
_RECOMPUTED = re.compile(r"(\.position_ids|rotary_emb\.inv_freq)$")


def config_from_published(published: Mapping[str, Any], shapes: Mapping[str, Any]) -> ModelConfig:
    """A published config.json -> ours; what it leaves out is read off the tensors' shapes.

    shapes: tensor name -> shape. The field names beside the published ones (vision_width, ...) are
    those of the golden cases; a real checkpoint leaves them out and has EVA ViT-g and BERT-base.
    """
    get = published.get
    eva, bert = VisionConfig(), QFormerConfig()
    words = shapes.get(_BERT + "embeddings.word_embeddings.weight", (bert.vocab_size, bert.width))
    positions = shapes.get(_BERT + "embeddings.position_embeddings.weight", (bert.max_positions,))
    ffn = shapes.get(_BERT + "encoder.layer.0.intermediate.dense.weight", (bert.mlp_hidden,))
    if get("mm_vision_select_feature", "patch") != "patch":
        raise UserError(
            "mm_vision_select_feature must be 'patch'; other features are not LLaMA-VID"
        )
    return ModelConfig(
        name=str(get("_name_or_path") or "llama-vid"),
        family="llama-vid",
        vision=VisionConfig(
            image_size=get("image_size", eva.image_size),
            patch_size=get("patch_size", eva.patch_size),
            width=get("vision_width", get("mm_hidden_size", eva.width)),
            depth=get("vision_depth", eva.depth),
            heads=get("vision_heads", eva.heads),
            mlp_hidden=get("vision_mlp_hidden", eva.mlp_hidden),
            layer_norm_eps=get("vision_layer_norm_eps", eva.layer_norm_eps),
        ),
        qformer=QFormerConfig(
            vocab_size=get("qformer_vocab", words[0]),
            width=get("qformer_width", words[1]),
            depth=get("qformer_layers", bert.depth),
            heads=get("qformer_heads", bert.heads),
            mlp_hidden=ffn[0],
            max_positions=positions[0],
            num_query=get("num_query", bert.num_query),
            cross_attention_freq=get("cross_attention_freq", bert.cross_attention_freq),
            layer_norm_eps=get("qformer_layer_norm_eps", bert.layer_norm_eps),
        ),
        language=LanguageConfig(
            vocab_size=published["vocab_size"],
            width=published["hidden_size"],
            depth=published["num_hidden_layers"],
            heads=published["num_attention_heads"],
            kv_heads=get("num_key_value_heads"),
            mlp_hidden=published["intermediate_size"],
            max_positions=get("max_position_embeddings", 4096),
            rms_norm_eps=get("rms_norm_eps", 1e-5),
            rope_theta=get("rope_theta", 10000.0),
        ),
        compress_type=get("compress_type") or "mean",
        mm_projector_type=get("mm_projector_type", "mlp2x_gelu"),
    )


def rename(published: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Published state dict -> ours. UserError lists names this layout does not know."""
    ours: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in published.items():
        if _RECOMPUTED.search(name) or _is_bias_part(name):
            continue
        new = _renamed(name)
        if new is None:
            unknown.append(name)
        elif not _beyond_depth(new, config):
            ours[new] = tensor
    if unknown:
        listed = ", ".join(sorted(unknown)[:8])
        raise UserError(f"{len(unknown)} tensors are not of LLaMA-VID's layout: {listed}")
    for layer in range(config.vision.depth):
        part = f"{_TOWER}blocks.{layer}.attn."
        if part + "q_bias" in published:
            query, value = published[part + "q_bias"], published[part + "v_bias"]
            bias = torch.cat([query, torch.zeros_like(query), value])  # EVA has no key bias
            ours[f"vision.model.encoder.layers.{layer}.self_attn.qkv.bias"] = bias
    position = "vision.model.embeddings.position_embedding"
    if position in ours:
        ours[position] = resized_positions(ours[position], config.vision.grid)
    return ours


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """(1, 1 + g * g, C) learned positions -> a grid of another side, bicubic; the class stays."""
    side = math.isqrt(table.shape[1] - 1)
    if side == grid:
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    flat = resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([table[:, :1], flat], dim=1)


def _renamed(name: str) -> str | None:
    for prefix, ours in _PREFIXES.items():
        if not name.startswith(prefix):
            continue
        inside = {_BERT: _INSIDE_BERT, _TOWER + "blocks.": _INSIDE_TOWER}.get(prefix, {})
        rest = name[len(prefix) :]
        for old, new in inside.items():
            rest = rest.replace(old, new)
        return ours + rest
    return None


def _is_bias_part(name: str) -> bool:
    return name.startswith(_TOWER) and name.endswith((".q_bias", ".v_bias"))


def _beyond_depth(name: str, config: ModelConfig) -> bool:
    """Whether the tensor is of a vision block past those in use: EVA ships 40 blocks, 39 serve."""
    match = re.match(r"vision\.model\.encoder\.layers\.(\d+)\.", name)
    return match is not None and int(match[1]) >= config.vision.depth
