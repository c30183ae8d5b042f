"""Text models of `transformers`, causal or seq2seq: answers written, and answers scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emolake.pipeline.errors import UserError, in_a_line

_IGNORED = -100


class TextModel:
    """A folder of the hub's form. limit: tokens of a written answer."""

    def __init__(self, folder: str, device: str, limit: int) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        try:
            # No folder's own code is run.
            local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            config = transformers.AutoConfig.from_pretrained(folder, **local)
            self.seq2seq = bool(config.is_encoder_decoder)
            kind = "AutoModelForSeq2SeqLM" if self.seq2seq else "AutoModelForCausalLM"
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, padding_side="left", **local
            )
            self.model: Any = getattr(transformers, kind).from_pretrained(
                folder,
                **local,
                weights_only=True,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            )
        except Exception as error:  # whatever the library's loaders raise
            raise UserError(f"model {folder} cannot be loaded: {in_a_line(error, 200)}") from None
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = self.model.to(device).eval()
        self.device = device
        self.limit = limit

    @torch.inference_mode()
    def write(self, prompts: list[str]) -> list[str]:
        """The answer to each, greedily, in one batch padded on the left."""
        if not prompts:
            return []
        given = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        given.pop("token_type_ids", None)
        ids = self.model.generate(
            **given,
            max_new_tokens=self.limit,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        answers = ids if self.seq2seq else ids[:, given["input_ids"].shape[1] :]
        told: list[str] = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [answer.strip() for answer in told]

    def expected(self, prompts: list[str], numbers: Sequence[str]) -> list[float]:
        """The mean of `numbers`, each weighted by its probability as the answer."""
        if not prompts:
            return []
        values = torch.tensor([float(number) for number in numbers])
        told: list[float] = (self.score(prompts, numbers).softmax(-1) * values).sum(-1).tolist()
        return told

    @torch.inference_mode()
    def score(self, prompts: list[str], answers: Sequence[str]) -> Tensor:
        """(P, A) float32 log-probability of each answer after each prompt."""
        return torch.stack([self._scored(one, answers) for one in prompts]).cpu()

    def _scored(self, asked: str, answers: Sequence[str]) -> Tensor:
        rows = [self._ids(answer) for answer in answers]
        if self.seq2seq:
            given = self.tokenizer(asked, return_tensors="pt").to(self.device)
            labels = _padded(rows, _IGNORED).to(self.device)
            encoded = given["input_ids"].expand(len(rows), -1)
            return _log_probability(self.model(input_ids=encoded, labels=labels).logits, labels)
        before: list[int] = self.tokenizer(asked)["input_ids"]
        # Padding stands on the right, where no token that counts can see it.
        whole = _padded([before + row for row in rows], self.tokenizer.pad_token_id)
        ignored = [_IGNORED] * len(before)
        labels = _padded([ignored + row for row in rows], _IGNORED).to(self.device)
        logits = self.model(input_ids=whole.to(self.device)).logits
        return _log_probability(logits[:, :-1], labels[:, 1:])

    def _ids(self, answer: str) -> list[int]:
        ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return ids


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def _log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """(A, S, V) and (A, S) with _IGNORED -> (A,): sum over the tokens that count."""
    told = logits.float().log_softmax(-1)
    each = told.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return (each * (labels != _IGNORED)).sum(-1)
