"""Label scoring: the probability of every label from one prefill, with the prompt's cache shared.

The labels form a trie. The first tokens are scored by the prefill itself; the inner nodes of the
trie go through the model once, all in one sequence, each seeing the prompt and its own ancestors
(tree attention). The result equals one full forward per label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


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


def label_log_probabilities(
    language: LlamaForCausalLM, embeds: Tensor, trie: LabelTrie, temperature: float = 1.0
) -> Tensor:
    """embeds (B, S, D) up to the prompt's end -> (B, L) float32 log-probabilities that sum to 1."""
    scores = sequence_log_probabilities(language, embeds, trie)
    return (scores / temperature).log_softmax(-1)


def sequence_log_probabilities(
    language: LlamaForCausalLM, embeds: Tensor, trie: LabelTrie
) -> Tensor:
    """(B, L) float32: log of the product of each label's token probabilities after the prompt."""
    prompt = embeds.shape[1]
    out = language(inputs_embeds=embeds, use_cache=bool(trie.inner), logits_to_keep=1)
    after = [out.logits[:, -1:].float().log_softmax(-1)]
    if trie.inner:
        tokens, mask, depth = _tree(trie, len(embeds), prompt, embeds)
        inner = language(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(prompt + depth).expand(len(embeds), -1),
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        after.append(inner.logits.float().log_softmax(-1))
    table = torch.cat(after, dim=1)  # row 0: the prompt's end; row 1 + i: inner node i
    columns = []
    for path in trie.steps:
        nodes = torch.tensor([node + 1 for node, _ in path], device=table.device)
        ids = torch.tensor([token for _, token in path], device=table.device)
        columns.append(table[:, nodes, ids].sum(1))
    return torch.stack(columns, dim=1)


def greedy(language: LlamaForCausalLM, embeds: Tensor, steps: int) -> Tensor:
    """`steps` most likely tokens after embeds (B, S, D): (B, steps) int64; no stop token."""
    out = language(inputs_embeds=embeds, use_cache=True)
    ids = [out.logits[:, -1].argmax(-1)]
    while len(ids) < steps:
        out = language(
            input_ids=ids[-1][:, None], past_key_values=out.past_key_values, use_cache=True
        )
        ids.append(out.logits[:, -1].argmax(-1))
    return torch.stack(ids, dim=1)


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
    mask[:, prompt:].masked_fill_(~sees, torch.finfo(like.dtype).min)
    tokens = torch.tensor([token for token, _ in trie.inner]).expand(batch, -1)
    return (
        tokens.to(like.device),
        mask.expand(batch, 1, -1, -1).to(like.device),
        depth.to(like.device),
    )
