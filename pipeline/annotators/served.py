"""Vision-language models behind an OpenAI-compatible endpoint as annotators.

The window's pictures go with a question whose answers are letters; a label's score is the probability of its
letter as the first token of the answer, where the endpoint tells probabilities. Where it tells none, the
answer is read strictly.
"""

from __future__ import annotations

import math
import os
import re
import string
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.labels import canonical, label_set
from emolake.pipeline.models.catalog import model_path, model_revision, read_config
from emolake.pipeline.models.served import ServedConfig
from emolake.pipeline.storage.chat import (
    ENDPOINT_KEY,
    ChatConfig,
    ChatEndpoint,
    NoAnswer,
    picture_part,
)

_ALTERNATIVES = 20  # what the API gives at most
_LEAST = 0.1
"""Probability of all letters together below which the first token answers something else."""
_ASKED = (
    "{pictures} in time order. Which expression does the face show? Answer with one letter and nothing else."
    "\n{answers}"
)
_DESCRIBE = (
    "{pictures} in time order. Describe what is visible of the face's expression and how it changes, in one "
    "or two sentences, without a guess about identity, health or cause."
)


class ServedAnnotator:
    """usage: what the endpoint was asked for until now (requests, input_tokens, output_tokens)."""

    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:  # noqa: ARG002
        path = model_path(model)
        told = read_config(path)
        if not isinstance(told, ServedConfig):
            raise UserError(f"model {model} is behind no endpoint")
        if not config.send_pictures:
            raise UserError(told.refusal)
        self.config, self.options, self.served = told, config, told.served
        self.name, self.revision = told.name, model_revision(path)
        self.needs = told.needs
        self.labels = label_set(config.label_set or told.label_set)
        self.letters = string.ascii_uppercase[: len(self.labels)]
        self._tells = True  # probabilities; until it refuses to
        self._chat = ChatEndpoint(
            ChatConfig(
                url=self.served.endpoint,
                model=self.served.model,
                key=os.environ.get(ENDPOINT_KEY) or "none",
                requests_per_minute=self.served.requests_per_minute,
                timeout_s=self.served.timeout_s,
                retries=self.served.retries,
                patience_s=self.served.patience_s,
            )
        )

    @property
    def usage(self) -> Counter[str]:
        return self._chat.spent

    def annotate(self, windows: list[WindowInput]) -> list[Annotation | Exception]:
        with ThreadPoolExecutor(self.served.concurrency) as pool:
            return list(pool.map(self._annotation, windows))

    def _annotation(self, window: WindowInput) -> Annotation | Exception:
        """The error where only this window is to blame."""
        try:
            pictures = [picture_part(data, kind) for data, kind in self._shown(window)]
            which = (
                "This is a picture" if len(pictures) == 1 else f"These are {len(pictures)} pictures"
            )
            scores, absent = self._scores(f"{which} of one face,", pictures)
            described = None
            if self.options.describe:
                described = self._words(
                    _DESCRIBE.format(pictures=f"{which} of one face,"), pictures
                )
        except NoAnswer as error:
            told = f"{self.served.endpoint} gives no answer: {error}"
            if error.away:
                raise JobFailed(f"{told}; once it does, the same command resumes") from None
            return ValueError(told)
        except UserError as error:
            raise JobFailed(str(error)) from None
        return Annotation(scores, description=described or None, absent=absent)

    def _shown(self, window: WindowInput) -> list[tuple[bytes, str]]:
        """So many of the window's pictures, spread over it, and how they are encoded."""
        if self.served.shows == "face":
            pictures = window.crops[self.config.crop].pictures
        else:
            pictures = window.frames[self.config.frame]
        chosen = np.linspace(0, len(pictures) - 1, min(self.served.frames, len(pictures))).round()
        return [(data, _kind(data)) for data in (pictures[int(k)] for k in chosen)]

    def _scores(
        self, pictures_told: str, pictures: list[dict[str, Any]]
    ) -> tuple[dict[str, float], list[str] | None]:
        answers = "\n".join(
            f"{letter}. {label}" for letter, label in zip(self.letters, self.labels, strict=True)
        )
        asked = _ASKED.format(pictures=pictures_told, answers=answers)
        choice = self._ask(asked, pictures, most=4, tells=self._tells)
        told = _by_letter(choice, self.letters)
        if told is not None:
            weights = [share ** (1 / self.config.temperature) for share in told]
            return self._named(weight / sum(weights) for weight in weights), None
        label = self._read((choice.message.content or "") if choice is not None else "")
        if label is None:
            return self._named(1 / len(self.labels) for _ in self.labels), ["label_answer"]
        return self._named(float(name == label) for name in self.labels), None

    def _named(self, scores: Iterable[float]) -> dict[str, float]:
        return dict(zip(self.labels, scores, strict=True))

    def _read(self, answer: str) -> str | None:
        """The label of an answer that is a letter or a label and nothing else."""
        match = re.fullmatch(r"\W*([A-Z])\W*(?:(?<=\W)([\w -]+?)\W*)?", answer.strip())
        if match and match[1] in self.letters:
            label = self.labels[self.letters.index(match[1])]
            return label if match[2] is None or canonical(match[2]) == label else None
        plain = canonical(answer.strip(" .!\n\t\"'*"))
        return plain if plain in self.labels else None

    def _words(self, asked: str, pictures: list[dict[str, Any]]) -> str:
        choice = self._ask(asked, pictures, most=self.options.max_answer_tokens, tells=False)
        words = " ".join(((choice.message.content or "") if choice is not None else "").split())
        if choice is not None and choice.finish_reason == "length":
            whole = re.match(r".*[.!?]", words)
            return whole.group() if whole else words
        return words

    def _ask(self, asked: str, pictures: list[dict[str, Any]], most: int, tells: bool) -> Any:
        options: dict[str, Any] = {"max_tokens": most, "temperature": 0}
        if tells:
            options |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        messages = [{"role": "user", "content": [*pictures, {"type": "text", "text": asked}]}]
        try:
            return self._chat.complete(messages, **options)
        except NoAnswer as error:
            if not tells or "logprobs" not in str(error):
                raise
            self._tells = False
            return self._ask(asked, pictures, most, tells=False)


def _by_letter(choice: Any, letters: str) -> list[float] | None:
    """The probability of each letter as the first token, None where none is told or the letters have no part
    in it."""
    told = getattr(choice, "logprobs", None)
    content = getattr(told, "content", None) or ()
    if not content:
        return None
    shares = dict.fromkeys(letters, 0.0)
    first = content[0]
    alternatives = first.top_logprobs or [first]
    for token, logprob in {(one.token, one.logprob) for one in alternatives}:
        letter = token.strip(" \n\t.:)(*\"'\u2581\u0120")
        if letter in shares and math.isfinite(logprob):
            shares[letter] += math.exp(min(logprob, 0.0))
    return list(shares.values()) if sum(shares.values()) >= _LEAST else None


def _kind(data: bytes) -> str:
    return "jpeg" if data[:2] == b"\xff\xd8" else "png"
