"""Canonical emotion labels, the label sets of the field's data sets, and their synonyms."""

from __future__ import annotations

from pipeline.errors import UserError

_SEVEN = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
_EIGHT = (*_SEVEN, "contempt")

LABEL_SETS: dict[str, tuple[str, ...]] = {
    "fer2013": _SEVEN,
    "raf-db": _SEVEN,
    "dfew": _SEVEN,
    "ferv39k": _SEVEN,
    "affectnet": _EIGHT,
    "mafw": (*_EIGHT, "anxiety", "helplessness", "disappointment"),
    "emotion-llama": (
        *("happiness", "sadness", "neutral", "anger", "worry"),
        *("surprise", "fear", "contempt", "doubt"),
    ),
    "emollms": (
        *("anger", "anticipation", "disgust", "fear", "joy", "love", "optimism"),
        *("pessimism", "sadness", "surprise", "trust", "neutral"),
    ),
    "mer2023": ("anger", "happiness", "neutral", "sadness", "surprise", "worry"),
}

_ADJECTIVES = {
    "happiness": "happy",
    "sadness": "sad",
    "anger": "angry",
    "worry": "worried",
}

_SYNONYMS: dict[str, str] = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
    "worried": "worry",
    "contemptuous": "contempt",
    "anxious": "anxiety",
    "helpless": "helplessness",
    "disappointed": "disappointment",
}


def label_set(name: str) -> tuple[str, ...]:
    """The labels of a set by name; UserError names the known sets."""
    try:
        return LABEL_SETS[name]
    except KeyError:
        known = ", ".join(LABEL_SETS)
        raise UserError(f"label set {name!r} is unknown; known sets: {known}") from None


def spelled(label: str) -> str:
    """How Emotion-LLaMA's prompt and answers spell a canonical label ("happiness" -> "happy")."""
    return _ADJECTIVES.get(label, label)


def canonical(label: str) -> str:
    """The canonical name of a label as data sets spell it ("Happy" -> "happiness")."""
    plain = label.strip().lower()
    return _SYNONYMS.get(plain, plain)
