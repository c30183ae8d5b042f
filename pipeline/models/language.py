"""The language side that all LLaMA-based systems share: the model, and visual tokens in a prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from emolake.pipeline.models.config import LanguageConfig
from emolake.pipeline.models.prompts import IMAGE_TOKEN
from emolake.pipeline.models.transfer import sent


def causal_language(config: LanguageConfig, attention: str) -> LlamaForCausalLM:
    return LlamaForCausalLM(_llama_config(config, attention))


def spliced(
    language: LlamaForCausalLM, prompt_ids: Tensor | tuple[int, ...], visual_tokens: Tensor
) -> Tensor:
    """prompt_ids (m,), or (B, m) with the placeholder in one place, each with one IMAGE_TOKEN;
    visual_tokens (B, v, D) -> (B, m - 1 + v, D). A tuple spares the host a look at the device."""
    rows = torch.atleast_2d(torch.as_tensor(prompt_ids))
    first = prompt_ids if isinstance(prompt_ids, tuple) else rows[0].tolist()
    if first.count(IMAGE_TOKEN) != 1:
        raise ValueError(
            f"a prompt needs exactly one image placeholder, this has {first.count(IMAGE_TOKEN)}"
        )
    embed = language.get_input_embeddings()
    batch, place = len(visual_tokens), first.index(IMAGE_TOKEN)
    rows = sent(rows, visual_tokens.device)
    before = embed(rows[:, :place]).expand(batch, -1, -1)
    after = embed(rows[:, place + 1 :]).expand(batch, -1, -1)
    return torch.cat([before, visual_tokens.to(before.dtype), after], dim=1)


def _llama_config(config: LanguageConfig, attention: str) -> LlamaConfig:
    return LlamaConfig(  # type: ignore[call-arg]
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_hidden,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads or config.heads,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
