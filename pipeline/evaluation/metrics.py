"""Classification metrics of the emotion-recognition field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15
Floats = NDArray[np.float64]


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
    recall: Floats


def classification_scores(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.int64],
    counts: NDArray[np.int64] | None = None,
) -> Scores:
    """probabilities (N, L) that sum to 1 per row; truth (N,) label indices; counts (N,): how often each
    sample counts, as a bootstrap draws it."""
    n, labels = probabilities.shape
    times = np.ones(n, np.int64) if counts is None else counts
    guess = probabilities.argmax(1)
    confusion = np.bincount(truth * labels + guess, times, labels**2).reshape(labels, labels)
    support, hits = confusion.sum(1), np.diag(confusion)
    occurs = support > 0
    recall = np.where(occurs, hits / np.maximum(support, 1), np.nan)
    f1 = 2 * hits / np.maximum(support + confusion.sum(0), 1)
    of_truth = probabilities[np.arange(n), truth]
    distance = ((probabilities - np.eye(labels)[truth]) ** 2).sum(1)
    total = times.sum()
    bins = _bins(probabilities, truth, times)
    return Scores(
        n=int(total),
        war=float(hits.sum() / total),
        uar=float(recall[occurs].mean()),
        macro_f1=float(f1[occurs].mean()),
        weighted_f1=float((f1 * support).sum() / total),
        ece=float(sum(abs(b.accuracy - b.confidence) * b.n for b in bins) / total),
        nll=float(-(np.log(np.maximum(of_truth, 1e-12)) * times).sum() / total),
        brier=float((distance * times).sum() / total),
        confusion=confusion.astype(np.int64),
        recall=recall,
    )


@dataclass(frozen=True)
class Bin:
    """The samples of about one confidence. accuracy, confidence: their means."""

    n: float
    accuracy: float
    confidence: float


def reliability(probabilities: NDArray[np.floating], truth: NDArray[np.int64]) -> list[Bin]:
    """ECE's bins, those without a sample left out."""
    return _bins(probabilities, truth, np.ones(len(truth), np.int64))


def _bins(
    probabilities: NDArray[np.floating], truth: NDArray[np.int64], times: NDArray[np.int64]
) -> list[Bin]:
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == truth
    which = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    size, hits, mass = (
        np.bincount(which, weights, ECE_BINS)
        for weights in (times, right * times, confidence * times)
    )
    return [Bin(n, h / n, m / n) for n, h, m in zip(size, hits, mass, strict=True) if n]


def against_votes(
    probabilities: NDArray[np.floating], votes: Floats, counts: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """How a model agrees with everybody who was asked; votes (N, L), rows sum to 1.

    soft_accuracy: share of the votes that the winning label has; cross_entropy: of the votes against the
    probabilities, in nats; total_variation: half the summed distance of the two.
    """
    won = votes[np.arange(len(votes)), probabilities.argmax(1)]
    entropy = -(votes * np.log(np.maximum(probabilities, 1e-12))).sum(1)
    apart = np.abs(votes - probabilities).sum(1) / 2
    return {
        "soft_accuracy": float(np.average(won, weights=counts)),
        "cross_entropy": float(np.average(entropy, weights=counts)),
        "total_variation": float(np.average(apart, weights=counts)),
    }


@dataclass(frozen=True)
class Coverage:
    """Accuracy of the `coverage` part of the samples that a model is surest of; threshold: the least
    confidence among those."""

    coverage: float
    accuracy: float
    threshold: float


def risk_coverage(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], steps: int = 20
) -> list[Coverage]:
    """The curve (El-Yaniv and Wiener 2010) at `steps` coverages from all samples down."""
    order = np.argsort(-confidence, kind="stable")
    hits = np.cumsum(right[order])
    kept = [max(round(len(order) * k / steps), 1) for k in range(steps, 0, -1)]
    return [
        Coverage(n / len(order), float(hits[n - 1] / n), float(confidence[order[n - 1]]))
        for n in kept
    ]
