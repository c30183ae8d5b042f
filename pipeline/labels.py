"""What a face is called: canonical emotion labels, the label sets of the field's data sets and their
synonyms (labels.yaml), and the names of a person's attributes."""

from __future__ import annotations

from pathlib import Path

import yaml

from emolake.pipeline.errors import UserError

ATTRIBUTES = ("age", "gender", "race")
"""What a manifest or a labelled table may tell of the person a video shows."""

_TOLD = yaml.safe_load((Path(__file__).parent / "labels.yaml").read_text())

LABEL_SETS: dict[str, tuple[str, ...]] = {
    name: tuple(labels) for name, labels in _TOLD["sets"].items()
}
KNOWN_LABELS = frozenset(label for labels in LABEL_SETS.values() for label in labels)
_SYNONYMS: dict[str, str] = _TOLD["synonyms"]
_SPELLED: dict[str, str] = _TOLD["spelled"]
_NUMBERS: dict[str, dict[int, str]] = _TOLD["numbers"]


def label_set(name: str) -> tuple[str, ...]:
    """The labels of a set by name; UserError names the known sets."""
    try:
        return LABEL_SETS[name]
    except KeyError:
        known = ", ".join(LABEL_SETS)
        raise UserError(f"label set {name!r} is unknown; known sets: {known}") from None


def spelled(label: str) -> str:
    """How Emotion-LLaMA's prompt and answers spell a canonical label ("happiness" -> "happy")."""
    return _SPELLED.get(label, label)


def canonical(label: str) -> str:
    """The canonical name of a label as data sets spell it ("Happy" -> "happiness")."""
    plain = label.strip().lower()
    return _SYNONYMS.get(plain, plain)


def numbered(data_set: str, number: int) -> str | None:
    """The label that a number stands for in the annotations of a data set; None where it is none."""
    return _NUMBERS[data_set].get(number)
