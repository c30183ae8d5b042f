"""Published LLaMA-VID checkpoints: their config fields and tensor names, mapped to ours.

Names and layout: dvlab-research/LLaMA-VID (arXiv 2311.17043), llama-vid-7b-full-224-video-fps-1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from emolake.pipeline.errors import UserError
from emolake.pipeline.models.config import EmoLlamaConfig, QFormerConfig
from emolake.pipeline.models.published import (
    LANGUAGE_PREFIXES,
    eva_config,
    eva_tensors,
    language_config,
    renamed,
)

_TOWER = "model.vision_tower.vision_tower."
_BERT = "model.vlm_att_encoder.bert."

_PREFIXES = {
    _BERT: "qformer.",
    "model.vlm_att_query": "query_tokens",
    "model.vlm_att_ln.": "vision.model.post_layernorm.",
    "model.vlm_att_projector.": "text_projection.",
    "model.vlm_att_key_projector.": "key_projection.",
    "model.vlm_att_val_projector.": "value_projection.",
    "model.mm_projector.": "content_projection.",
    **LANGUAGE_PREFIXES,
}
_INSIDE_BERT = {
    "embeddings.LayerNorm.": "embeddings.layernorm.",
    "attention.self.": "attention.attention.",
}


def config_from_published(
    published: Mapping[str, Any], shapes: Mapping[str, Any]
) -> EmoLlamaConfig:
    """A published config.json -> ours; what it leaves out is read off the tensors' shapes.

    shapes: tensor name -> shape. The field names beside the published ones (vision_width, ...) are
    those of the golden cases; a real checkpoint leaves them out and has EVA ViT-g and BERT-base.
    """
    get = published.get
    bert = QFormerConfig()
    words = shapes.get(_BERT + "embeddings.word_embeddings.weight", (bert.vocab_size, bert.width))
    positions = shapes.get(_BERT + "embeddings.position_embeddings.weight", (bert.max_positions,))
    ffn = shapes.get(_BERT + "encoder.layer.0.intermediate.dense.weight", (bert.mlp_hidden,))
    if get("mm_vision_select_feature", "patch") != "patch":
        raise UserError(
            "mm_vision_select_feature must be 'patch'; other features are not LLaMA-VID"
        )
    return EmoLlamaConfig(
        name=str(get("_name_or_path") or "llama-vid"),
        family="llama-vid",
        vision=eva_config(published),
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
        language=language_config(published),
        compress_type=get("compress_type") or "mean",
        mm_projector_type=get("mm_projector_type", "mlp2x_gelu"),
    )


def rename(published: Mapping[str, Tensor], config: EmoLlamaConfig) -> dict[str, Tensor]:
    """Published state dict -> ours. UserError lists names this layout does not know."""
    tower, rest = eva_tensors(published, _TOWER, config.vision)
    return {f"vision.model.{name}": tensor for name, tensor in tower.items()} | renamed(
        rest, _renamed, "LLaMA-VID"
    )


def _renamed(name: str) -> str | None:
    for prefix, ours in _PREFIXES.items():
        if not name.startswith(prefix):
            continue
        rest = name[len(prefix) :]
        for old, new in _INSIDE_BERT.items() if prefix == _BERT else ():
            rest = rest.replace(old, new)
        return ours + rest
    return None
