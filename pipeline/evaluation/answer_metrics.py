"""Metrics of what models give besides a label: action units, numbers, sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

import numpy as np

AU_SETS: dict[str, tuple[int, ...]] = {
    "disfa": (1, 2, 4, 6, 9, 12, 25, 26),
    "bp4d": (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24),
    "faba-instruct": (
        *(1, 2, 4, 5, 6, 7, 9, 10, 12, 14),
        *(15, 16, 17, 20, 23, 24, 25, 26, 27, 43),
    ),
}
"""Action units that each data set is scored on (EmoLA, arXiv 2404.05052)."""


def action_unit_f1(
    given: Sequence[Sequence[str]], true: Sequence[Sequence[str]], units: Sequence[int]
) -> dict[str, float]:
    """F1 of each unit over all samples, 0 where it neither occurs nor is given; `mean` of them all."""
    told: dict[str, float] = {}
    for unit in units:
        name = f"AU{unit}"
        both = sum(name in g and name in t for g, t in zip(given, true, strict=True))
        named = sum(name in g for g in given) + sum(name in t for t in true)
        told[name] = 2 * both / named if named else 0.0
    return told | {"mean": fmean(told.values())}


def pearson(given: Sequence[float], true: Sequence[float]) -> float | None:
    """Correlation; None where one side does not vary."""
    a, b = np.asarray(given, np.float64), np.asarray(true, np.float64)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def rouge_l(given: str, true: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), lower case, punctuation left out."""
    ours, theirs = _words(given), _words(true)
    if not ours or not theirs:
        return 0.0
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for k, other in enumerate(theirs, 1):
            before, row[k] = row[k], before + 1 if word == other else max(row[k], row[k - 1])
    common = row[-1]
    return 2 * common / (len(ours) + len(theirs))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
