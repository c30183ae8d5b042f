"""Classification metrics of the emotion-recognition field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """n samples over L labels.

    war: accuracy (weighted average recall); uar: mean of the recalls of the labels that occur;
    macro_f1: mean F1 over those; weighted_f1: the same, each by how often it occurs (MER2023's);
    ece: expected calibration error over 15 equal-width bins (Guo et al. 2017); brier: mean squared
    distance to the truth over all labels; confusion: (L, L) counts, rows truth; recall: (L,), NaN where
    a label does not occur.
    """

    n: int
    war: float
    uar: float
    macro_f1: float
    weighted_f1: float
    ece: float
    nll: float
    brier: float
    confusion: NDArray[np.int64]
    recall: NDArray[np.float64]


def classification_scores(probabilities: NDArray[np.floating], truth: NDArray[np.int64]) -> Scores:
    """probabilities (N, L) that sum to 1 per row; truth (N,) label indices."""
    n, labels = probabilities.shape
    guess = probabilities.argmax(1)
    confusion = np.zeros((labels, labels), np.int64)
    np.add.at(confusion, (truth, guess), 1)
    support, hits = confusion.sum(1), np.diag(confusion)
    occurs = support > 0
    recall = np.where(occurs, hits / np.maximum(support, 1), np.nan)
    f1 = 2 * hits / np.maximum(support + confusion.sum(0), 1)
    confidence = probabilities[np.arange(n), guess]
    right = (guess == truth).astype(np.float64)
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [
        abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    ]
    return Scores(
        n=n,
        war=float(right.mean()),
        uar=float(recall[occurs].mean()),
        macro_f1=float(f1[occurs].mean()),
        weighted_f1=float((f1 * support).sum() / n),
        ece=float(np.sum(gaps)),
        nll=float(-np.log(np.maximum(probabilities[np.arange(n), truth], 1e-12)).mean()),
        brier=float(((probabilities - np.eye(labels)[truth]) ** 2).sum(1).mean()),
        confusion=confusion,
        recall=recall,
    )
