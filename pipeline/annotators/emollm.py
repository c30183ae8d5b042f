"""EmoLLMs (arXiv 2401.08508) as annotators of what is said: emotions, intensity, valence, sentiment.

Any causal or seq2seq checkpoint of `transformers` serves. Prompts are the paper's. An answer is read
strictly; where it cannot be, the number is the expected value over scored numbers, and `absent` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.annotators.batches import MicroBatches
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.catalog import model_path, model_revision, read_config
from emolake.pipeline.models.text import TextModel

_NEUTRAL = "neutral or no emotion"
_WITH_INTENSITY = ("anger", "fear", "joy", "sadness")
"""Emotions whose intensity the models were tuned to tell."""


@dataclass(frozen=True)
class Task:
    """One of the paper's instructions. scored: the numbers whose probabilities make an expected value;
    read: an answer -> its number, None where it is none."""

    name: str
    instruction: str
    cue: str
    scored: tuple[str, ...] = ()
    read: Callable[[str], float | None] = lambda _: None

    def prompt(self, text: str) -> str:
        return f"Human: \nTask: {self.instruction}\nText: {text}\n{self.cue}\n\nAssistant:\n"


def read_emotions(answer: str) -> list[str] | None:
    """The emotions of a multi-label answer, [] for none; None where a word of it is no label."""
    words = [word.strip().lower() for word in _bare(answer).split(",") if word.strip()]
    if words == [_NEUTRAL]:
        return []
    known = label_set("emollms")
    return words if words and all(word in known for word in words) else None


def read_score(answer: str) -> float | None:
    """A number from 0 to 1 and nothing else."""
    match = re.fullmatch(r"0(?:\.\d+)?|1(?:\.0+)?", _bare(answer))
    return float(match[0]) if match else None


def read_class(answer: str) -> float | None:
    """An ordinal class, with or without its words."""
    match = re.fullmatch(r"(-?[0-3])(?::.*)?", _bare(answer), re.DOTALL)
    return float(match[1]) if match else None


def _bare(answer: str) -> str:
    return answer.strip().removeprefix(">>").strip().rstrip(".")


_TENTHS = tuple(f"{k / 10:.1f}" for k in range(11))
EMOTIONS = Task(
    "emotions",
    "Categorize the text's emotional tone as either 'neutral or no emotion' or identify the presence "
    "of one or more of the given emotions (anger, anticipation, disgust, fear, joy, love, optimism, "
    "pessimism, sadness, surprise, trust).",
    "This text contains emotions:",
)
INTENSITY = Task(
    "intensity",
    "Assign a numerical value between 0 (least E) and 1 (most E) to represent the intensity of "
    "emotion E expressed in the text.",
    "Intensity Score:",
    _TENTHS,
    read_score,
)
VALENCE = Task(
    "valence",
    "Evaluate the valence intensity of the writer's mental state based on the text, assigning it a "
    "real-valued score from 0 (most negative) to 1 (most positive).",
    "Intensity Score:",
    _TENTHS,
    read_score,
)
SENTIMENT = Task(
    "sentiment",
    "Categorize the text into an ordinal class that best characterizes the writer's mental state, "
    "considering various degrees of positive and negative sentiment intensity. 3: very positive mental "
    "state can be inferred. 2: moderately positive mental state can be inferred. 1: slightly positive "
    "mental state can be inferred. 0: neutral or mixed mental state can be inferred. -1: slightly "
    "negative mental state can be inferred. -2: moderately negative mental state can be inferred. -3: "
    "very negative mental state can be inferred.",
    "Intensity Class:",
    tuple(str(k) for k in range(-3, 4)),
    read_class,
)


class EmoLlmAnnotator:
    """Windows are stretches of a transcript; a row each, of the video and of no face."""

    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:
        folder = model_path(model)
        described = read_config(folder)
        self.name, self.revision = described.name, model_revision(folder)
        self.needs = described.needs
        self.labels = label_set(config.label_set or described.label_set)
        self.batches = MicroBatches(config.micro_batch)
        self.expected = config.regression == "expected"
        self.text = TextModel(str(folder), device, config.max_answer_tokens)

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        return list(self.batches.run(windows, list, self._read))

    def _read(self, batch: Sequence[WindowInput]) -> list[Annotation]:
        texts = [window.transcript or "" for window in batch]
        absent: list[list[str]] = [[] for _ in texts]
        asked = [EMOTIONS.prompt(text) for text in texts]
        spelled = [_NEUTRAL if label == "neutral" else label for label in self.labels]
        scores = self.text.score(asked, spelled).softmax(-1)
        named = [read_emotions(answer) for answer in self.text.write(asked)]
        for missing, emotions in zip(absent, named, strict=True):
            if emotions is None:
                missing.append("emotions_answer")
        valence = self._numbers(VALENCE, texts, absent)
        sentiment = self._numbers(SENTIMENT, texts, absent)
        winners = [self.labels[k] for k in scores.argmax(-1).tolist()]
        intensity = self._intensities(texts, winners, absent)
        return [
            Annotation(
                dict(zip(self.labels, row, strict=True)),
                description=None if emotions is None else ", ".join(emotions) or _NEUTRAL,
                valence=value,
                intensity=strength,
                sentiment=round(mood),
                transcript=window.transcript,
                absent=missing or None,
            )
            for row, emotions, value, strength, mood, window, missing in zip(
                scores.tolist(), named, valence, intensity, sentiment, batch, absent, strict=True
            )
        ]

    def _intensities(
        self, texts: list[str], winners: list[str], absent: list[list[str]]
    ) -> list[float | None]:
        """Of the winning emotion, where it is one whose intensity can be asked."""
        out: list[float | None] = [None] * len(texts)
        rows = [k for k, winner in enumerate(winners) if winner in _WITH_INTENSITY]
        if rows:
            asked = [f"{texts[k]}\nEmotion: {winners[k]}" for k in rows]
            told = self._numbers(INTENSITY, asked, [absent[k] for k in rows])
            for k, value in zip(rows, told, strict=True):
                out[k] = value
        return out

    def _numbers(self, task: Task, texts: list[str], absent: list[list[str]]) -> list[float]:
        """A number a text: as written; or the expected value over the scored numbers, where that was
        asked for or the answer cannot be read, which is noted in `absent`."""
        asked = [task.prompt(text) for text in texts]
        if self.expected:
            return self.text.expected(asked, task.scored)
        written = [task.read(answer) for answer in self.text.write(asked)]
        unread = [k for k, value in enumerate(written) if value is None]
        for k in unread:
            absent[k].append(f"{task.name}_answer")
        fallback = self.text.expected([asked[k] for k in unread], task.scored)
        for k, value in zip(unread, fallback, strict=True):
            written[k] = value
        return [value for value in written if value is not None]
