"""What all annotators on a LLaMA do with it: prompts read once, label scores, answers in words."""

from __future__ import annotations

import math

from torch import Tensor
from transformers import LlamaForCausalLM

from emolake.pipeline.annotators.answers import write_answers
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.models.prompts import Prompter
from emolake.pipeline.models.scoring import LabelTrie, Prefill, SharedPrefix


class LanguageSide:
    """Prompts that begin alike share what the model makes of their beginning, from batch to batch."""

    def __init__(
        self, language: LlamaForCausalLM, prompter: Prompter, config: AnnotatorConfig
    ) -> None:
        if config.quantize is not None:
            _quantize(language)
        self._language = language
        self._prompter = prompter
        self._limit = config.max_answer_tokens
        self._writes = config.describe or config.read_answer or config.action_units
        self._context: int = language.config.max_position_embeddings
        self._prefixes: dict[tuple[int, ...], SharedPrefix] = {}

    def read(self, beginning: tuple[int, ...], embeds: Tensor) -> Prefill:
        """embeds: (B, S, D), whose rows all begin with the tokens `beginning`. ValueError where the
        model's context is too short for them."""
        wanted = embeds.shape[1] + (self._limit if self._writes else 0)
        if wanted > self._context:
            raise ValueError(
                f"the prompt and its answer take {wanted} tokens and the model's context is "
                f"{self._context}; fewer frames a window (windows.frames_per_window) make it shorter"
            )
        if beginning not in self._prefixes:
            head = embeds[:1, : len(beginning)]
            self._prefixes[beginning] = SharedPrefix(self._language, head)
        return Prefill(self._language, embeds, self._prefixes[beginning])

    def scores(self, prefill: Prefill, trie: LabelTrie, temperature: float) -> list[list[float]]:
        """Probability of each label for each row. ValueError where one is no number: what went in was
        none, and a row must not say that it was."""
        rows: list[list[float]] = prefill.label_log_probabilities(trie, temperature).exp().tolist()
        if not all(math.isfinite(score) for row in rows for score in row):
            raise ValueError(
                "the model gives scores that are no numbers; its input holds some, or overflows"
            )
        return rows

    def written(self, prefill: Prefill) -> list[str]:
        return write_answers(prefill, self._prompter.tokenizer, self._prompter.eos, self._limit)


def _quantize(language: LlamaForCausalLM) -> None:
    """The weights of every linear layer as int8 with a scale a row, in place."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise UserError(
            "annotator.quantize needs torchao: pip install 'emolake[quantize]'"
        ) from None
    quantize_(language, Int8WeightOnlyConfig())
