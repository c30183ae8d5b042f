"""Text models of `transformers`, causal or seq2seq: answers written, and answers scored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from emolake.pipeline.errors import UserError, in_a_line


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
            # An encoder counts its places from the left, padding and all; a decoder goes on at the right.
            side = "right" if self.seq2seq else "left"
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, padding_side=side, **local
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
        self._takes = inspect.signature(self.model.forward).parameters
        self.device = device
        self.limit = limit

    @torch.inference_mode()
    def write(self, prompts: list[str]) -> list[str]:
        """The answer to each, greedily, in one padded batch."""
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
        """(P, A) float32 log-probability of each answer after each prompt. Prompts are read once, in one
        padded batch; each answer then goes on from there."""
        given = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        given.pop("token_type_ids", None)
        logits_of = self._decoder(given) if self.seq2seq else self._continuation(given)
        rows = [torch.tensor(self._ids(answer), device=self.device) for answer in answers]
        told = [_log_probability(logits_of(row.repeat(len(prompts), 1)), row) for row in rows]
        return torch.stack(told, 1).cpu()

    def _decoder(self, given: Any) -> Callable[[Tensor], Tensor]:
        """Answers (P, S) -> logits (P, S, V)."""
        seen = given["attention_mask"]
        encoded = self.model.get_encoder()(**given)

        def logits_of(ids: Tensor) -> Tensor:
            out = self.model(encoder_outputs=encoded, attention_mask=seen, labels=ids)
            logits: Tensor = out.logits
            return logits

        return logits_of

    def _continuation(self, given: Any) -> Callable[[Tensor], Tensor]:
        """The same. What keeps no plain cache (sliding windows, recurrent models) reads the prompt anew."""
        seen = given["attention_mask"]
        places = (seen.cumsum(-1) - 1).clamp_min(0)
        read = self._read(given["input_ids"], seen, places, use_cache=True, logits_to_keep=1)
        cache: Any = getattr(read, "past_key_values", None)
        plain = all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", [None]))

        def logits_of(ids: Tensor) -> Tensor:
            further = ids[:, :-1]
            count = further.shape[1]
            if not count:
                return read.logits[:, -1:]
            more = torch.cat([seen, torch.ones_like(further)], 1)
            after = places[:, -1:] + 1 + torch.arange(count, device=self.device)
            if not plain:
                whole = torch.cat([given["input_ids"], further], 1)
                out = self._read(whole, more, torch.cat([places, after], 1))
                return out.logits[:, -count - 1 :]
            out = self._read(further, more, after, past_key_values=cache, use_cache=True)
            cache.crop(-count)
            return torch.cat([read.logits[:, -1:], out.logits], 1)

        return logits_of

    def _read(self, ids: Tensor, seen: Tensor, places: Tensor, **more: Any) -> Any:
        known = {"attention_mask": seen, "position_ids": places} | more
        return self.model(input_ids=ids, **{k: v for k, v in known.items() if k in self._takes})

    def _ids(self, answer: str) -> list[int]:
        ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return ids


def _log_probability(logits: Tensor, ids: Tensor) -> Tensor:
    """(P, S, V) and (S,) -> (P,): sum over the answer's tokens."""
    told = logits.float().log_softmax(-1)
    return told[:, torch.arange(len(ids), device=ids.device), ids].sum(-1)
