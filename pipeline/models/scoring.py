"""Label scoring: the probability of every label from one prefill, with the prompt's cache shared.

The labels form a trie. The first tokens are scored by the prefill itself; the inner nodes of the
trie go through the model once, all in one sequence, each seeing the prompt and its own ancestors
(tree attention). The result equals one full forward per label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from emolake.pipeline.models.transfer import sent


@dataclass(frozen=True)
class LabelTrie:
    """L labels as paths of tokens.

    inner: (token, parent) of each node that has children, parents first; parent -1 is the prompt.
    steps: for each label, its (node before the token, token) pairs; node -1 is the prompt's end.
    """

    inner: tuple[tuple[int, int], ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, labels: tuple[tuple[int, ...], ...]) -> LabelTrie:
        if any(not label for label in labels):
            raise ValueError("a label has no tokens")
        inner: dict[tuple[int, ...], int] = {}
        rows: list[tuple[int, int]] = []
        steps: list[tuple[tuple[int, int], ...]] = []
        for label in labels:
            node, path = -1, []
            for depth, token in enumerate(label):
                path.append((node, token))
                if depth == len(label) - 1:
                    break
                prefix = label[: depth + 1]
                if prefix not in inner:
                    inner[prefix] = len(rows)
                    rows.append((token, node))
                node = inner[prefix]
            steps.append(tuple(path))
        return cls(tuple(rows), tuple(steps))


class AsAttended(DynamicCache):
    """In mixed precision attention reads keys and values in bfloat16, and rotary positions leave them in
    float32. Held as they are read, a prompt's cache takes half and is cast once."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        kind = key_states.device.type
        if torch.is_autocast_enabled(kind):
            used = torch.get_autocast_dtype(kind)
            key_states, value_states = key_states.to(used), value_states.to(used)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class SharedPrefix:
    """What the language model makes of the tokens that every prompt begins with: keys and values of
    each layer, computed once and read by every batch."""

    def __init__(self, language: LlamaForCausalLM, embeds: Tensor) -> None:
        """embeds: (1, n, D)."""
        self.length = embeds.shape[1]
        cache = AsAttended()
        language.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        self._layers: list[tuple[Tensor, Tensor]] = [
            (layer.keys, layer.values)  # type: ignore[union-attr,misc]
            for layer in cache.layers
        ]

    def cache(self, batch: int) -> AsAttended:
        """A cache that holds the prefix for `batch` rows, to be read on from."""
        grown = AsAttended()
        for index, (keys, values) in enumerate(self._layers):
            shape = (batch, -1, -1, -1)
            grown.update(keys.expand(shape), values.expand(shape), index)
        return grown


class Prefill:
    """A batch of prompts of one length that the language model has read, once: label scores and written
    answers both go on from here."""

    def __init__(
        self, language: LlamaForCausalLM, embeds: Tensor, prefix: SharedPrefix | None = None
    ) -> None:
        """embeds: (B, S, D) up to the prompt's end; its first `prefix.length` are the prefix's."""
        self._language = language
        self._like = embeds
        self._length = embeds.shape[1]
        known = prefix.length if prefix is not None else 0
        self._cache = prefix.cache(len(embeds)) if prefix is not None else AsAttended()
        out = language(
            inputs_embeds=embeds[:, known:],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._next: Tensor = out.logits[:, -1].float()

    def label_log_probabilities(self, trie: LabelTrie, temperature: float = 1.0) -> Tensor:
        """(B, L) float32 log-probabilities over the labels; they sum to 1."""
        return (self.sequence_log_probabilities(trie) / temperature).log_softmax(-1)

    def sequence_log_probabilities(self, trie: LabelTrie) -> Tensor:
        """(B, L) float32: log of the product of each label's token probabilities after the prompt."""
        after = [self._next[:, None].log_softmax(-1)]
        if trie.inner:
            tokens, mask, depth = _tree(trie, len(self._like), self._length, self._like)
            inner = self._language(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=(self._length + depth).expand(len(tokens), -1),
                past_key_values=self._cache,
                use_cache=True,
            )
            after.append(inner.logits.float().log_softmax(-1))
            self._cache.crop(-len(trie.inner))
        return _of_paths(torch.cat(after, dim=1), trie)

    def written(self, limit: int, stop: int | None = None) -> list[list[int]]:
        """The most likely answer of each row, greedily: at most `limit` token ids, `stop` the last where
        it came. A row that has ended leaves the batch. Uses the prefill up."""
        ids = self._next.argmax(-1)
        answers = [[token] for token in ids.tolist()]
        rows = torch.arange(len(answers), device=ids.device)
        for _ in range(limit - 1):
            going = ids != stop if stop is not None else torch.ones_like(ids, dtype=torch.bool)
            if not bool(going.all()):
                kept = torch.nonzero(going)[:, 0]
                if not len(kept):
                    break
                self._cache.batch_select_indices(kept)
                ids, rows = ids[kept], rows[kept]
            out = self._language(
                input_ids=ids[:, None], past_key_values=self._cache, use_cache=True
            )
            ids = out.logits[:, -1].argmax(-1)
            for row, token in zip(rows.tolist(), ids.tolist(), strict=True):
                answers[row].append(token)
        return answers


def sequence_log_probabilities(
    language: LlamaForCausalLM, embeds: Tensor, trie: LabelTrie
) -> Tensor:
    """`Prefill.sequence_log_probabilities` in one forward without a cache, as training wants it: the inner
    nodes stand behind the prompt in the same sequence. embeds: (B, S, D) up to the prompt's end."""
    batch, length = embeds.shape[:2]
    tokens, seen, depth = _tree(trie, batch, length, embeds)
    count = tokens.shape[1]
    mask = torch.full((length + count, length + count), torch.finfo(torch.bfloat16).min)
    mask = mask.to(embeds).triu(1).expand(batch, 1, -1, -1).clone()
    mask[:, :, length:] = seen
    out = language(
        inputs_embeds=torch.cat([embeds, language.get_input_embeddings()(tokens)], dim=1),
        attention_mask=mask,
        position_ids=torch.cat([torch.arange(length, device=embeds.device), length + depth])[None],
        use_cache=False,
        logits_to_keep=1 + count,
    )
    return _of_paths(out.logits.float().log_softmax(-1), trie)


def _of_paths(table: Tensor, trie: LabelTrie) -> Tensor:
    """(B, L) sums along each label's path; table: (B, 1 + N, V) log-probabilities of what follows, row 0
    the prompt's end, row 1 + i inner node i."""
    steps = [(node + 1, token) for path in trie.steps for node, token in path]
    nodes, ids = sent(torch.tensor(steps).T.contiguous(), table.device)
    each = table[:, nodes, ids].split([len(path) for path in trie.steps], dim=1)
    return torch.stack([path.sum(1) for path in each], dim=1)


def _tree(trie: LabelTrie, batch: int, prompt: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, N), additive mask (B, 1, N, S + N) and depths (N,) of the inner nodes."""
    count = len(trie.inner)
    sees = torch.eye(count, dtype=torch.bool)
    depth = torch.zeros(count, dtype=torch.long)
    for node, (_, parent) in enumerate(trie.inner):
        if parent >= 0:
            sees[node] |= sees[parent]
            depth[node] = depth[parent] + 1
    mask = torch.zeros(count, prompt + count, dtype=like.dtype)
    mask[:, prompt:].masked_fill_(~sees, torch.finfo(torch.bfloat16).min)  # of any type
    tokens = torch.tensor([token for token, _ in trie.inner])
    return (
        sent(tokens, like.device).expand(batch, -1),
        sent(mask, like.device).expand(batch, 1, -1, -1),
        sent(depth, like.device),
    )
