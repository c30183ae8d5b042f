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
    Answer,
    ChatConfig,
    ChatEndpoint,
    NoAnswer,
    picture_part,
)

_ALTERNATIVES = 20  # what the API gives at most
_LEAST = 0.5
"""Probability of all letters together below which the first token answers something else."""
_WORD = re.compile(r"[\w-]+")
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
        self._tells, self._has_told = True, False  # probabilities; until it refuses to
        self._chat = ChatEndpoint(
            ChatConfig(
                url=self.served.endpoint,
                model=self.served.model,
                key=os.environ.get(ENDPOINT_KEY, "").strip(),
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
        answer = self._ask(asked, pictures, most=4, tells=self._tells)
        label, by_letter = self._read(answer.text)
        # The first token of a word may look like a letter: only where the answer is one do its chances count.
        told = _by_letter(answer, self.letters) if by_letter else None
        if told is not None:
            weights = [share ** (1 / self.config.temperature) for share in told]
            return self._named(weight / sum(weights) for weight in weights), None
        if label is None:
            return self._named(1 / len(self.labels) for _ in self.labels), ["label_answer"]
        return self._named(float(name == label) for name in self.labels), None

    def _named(self, scores: Iterable[float]) -> dict[str, float]:
        return dict(zip(self.labels, scores, strict=True))

    def _read(self, answer: str) -> tuple[str | None, bool]:
        """The label of an answer that is a letter (with its label, which may be cut) or a label and nothing
        else, and whether it is a letter."""
        words = _WORD.findall(answer)
        if words and words[0] in self.letters:
            label = self.labels[self.letters.index(words[0])]
            rest = " ".join(words[1:]).lower()
            fits = label.startswith(rest) or canonical(rest) == label
            return (label, True) if fits else (None, False)
        plain = canonical(" ".join(words))
        return (plain if plain in self.labels else None), False

    def _words(self, asked: str, pictures: list[dict[str, Any]]) -> str:
        answer = self._ask(asked, pictures, most=self.options.max_answer_tokens, tells=False)
        words = " ".join(answer.text.split())
        whole = re.match(r".*[.!?]", words) if answer.cut else None
        return whole.group() if whole else words

    def _ask(self, asked: str, pictures: list[dict[str, Any]], most: int, tells: bool) -> Answer:
        options: dict[str, Any] = {"max_tokens": most, "temperature": 0}
        messages = [{"role": "user", "content": [*pictures, {"type": "text", "text": asked}]}]
        if not tells:
            return self._chat.complete(messages, **options)
        try:
            answer = self._chat.complete(
                messages, logprobs=True, top_logprobs=_ALTERNATIVES, **options
            )
            self._has_told = True
            return answer
        except NoAnswer as error:
            if self._has_told or "logprobs" not in str(error):
                raise
            answer = self._chat.complete(messages, **options)
            self._tells = False  # it is they that it does not take
            return answer


def _by_letter(answer: Answer, letters: str) -> list[float] | None:
    """The probability of each letter as the first token, None where none is told or the letters have little
    part in it."""
    shares = dict.fromkeys(letters, 0.0)
    for token, logprob in set(answer.alternatives):
        letter = token.strip(" \n\t.:)(*\"'\u2581\u0120")
        if letter in shares and math.isfinite(logprob):
            shares[letter] += math.exp(min(logprob, 0.0))
    return list(shares.values()) if sum(shares.values()) >= _LEAST else None


def _kind(data: bytes) -> str:
    return "jpeg" if data[:2] == b"\xff\xd8" else "png"
