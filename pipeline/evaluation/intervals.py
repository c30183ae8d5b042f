"""How far a figure can be trusted: bootstrap intervals, and tests of two models on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from emolake.pipeline.evaluation.metrics import against_votes, classification_scores

DRAWS = 1000
_TAILS = (2.5, 97.5)
Counts = NDArray[np.int64]
_FIGURES = ("war", "uar", "macro_f1", "weighted_f1", "ece", "nll", "brier")


@dataclass(frozen=True)
class Predictions:
    """What a model gave N samples over L labels, and what people saw in them.

    probabilities: (N, L), rows sum to 1; truth: (N,) label indices; votes: (N, L), rows sum to 1, where
    several people were asked; units: (N,) which samples are of one picture, video or person, and so
    resemble each other: the bootstrap draws units.
    """

    probabilities: NDArray[np.float64]
    truth: NDArray[np.int64]
    votes: NDArray[np.float64] | None
    units: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.probabilities.argmax(1) == self.truth

    def figures(self, counts: Counts | None = None) -> dict[str, float]:
        scores = classification_scores(self.probabilities, self.truth, counts)
        told = {name: float(getattr(scores, name)) for name in _FIGURES}
        if self.votes is not None:
            told |= against_votes(self.probabilities, self.votes, counts)
        return told


def bootstrap(
    units: NDArray[np.int64],
    measure: Callable[[Counts], Mapping[str, float]],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals (Efron 1979) of what `measure` tells of samples counted (N,) times; all
    samples of a unit are drawn together."""
    names, unit = np.unique(units, return_inverse=True)
    rng = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    told = [measure(rng.multinomial(len(names), even)[unit]) for _ in range(draws)]
    return {
        name: (float(low), float(high))
        for name in told[0]
        for low, high in [np.percentile([one[name] for one in told], _TAILS)]
    }


def with_intervals(
    figures: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Each figure with its `<name>_low` and `<name>_high` beside it."""
    told: dict[str, float] = {}
    for name, value in figures.items():
        told[name] = value
        if name in intervals:
            told[f"{name}_low"], told[f"{name}_high"] = intervals[name]
    return told


def compared(one: Predictions, other: Predictions) -> dict[str, float]:
    """The first model less the second, on the same samples: differences with their intervals by paired
    bootstrap, and the exact McNemar test of their accuracies (p_mcnemar, two-sided)."""

    def difference(counts: Counts | None = None) -> dict[str, float]:
        theirs = other.figures(counts)
        return {name: value - theirs[name] for name, value in one.figures(counts).items()}

    only_one = int((one.right & ~other.right).sum())
    only_other = int((other.right & ~one.right).sum())
    apart = only_one + only_other
    p = float(binomtest(only_one, apart).pvalue) if apart else 1.0
    told = with_intervals(difference(), bootstrap(one.units, difference))
    return told | {"only_first_right": only_one, "only_second_right": only_other, "p_mcnemar": p}


def one_person(votes: NDArray[np.float64], truth: NDArray[np.int64]) -> dict[str, float]:
    """How one of the people who were asked agrees with the others: each vote against what most of the
    others saw (a tie shared out), the mean over pictures and the mean over the classes `truth` names.

    votes: (N, K) counts as they were cast, labels that no model gives (unknown, no face) among them.
    """
    agrees = np.zeros(len(votes))
    for vote in range(votes.shape[1]):
        others = votes.copy()
        others[:, vote] -= 1
        most = others.max(1, keepdims=True)
        agrees += votes[:, vote] * (others[:, vote] == most[:, 0]) / (others == most).sum(1)
    agrees /= np.maximum(votes.sum(1), 1)
    by_class = [agrees[truth == label].mean() for label in np.unique(truth)]
    told = {"war": float(agrees.mean()), "uar": float(np.mean(by_class))}
    intervals = bootstrap(
        np.arange(len(votes)), lambda counts: {"war": float(np.average(agrees, weights=counts))}
    )
    return with_intervals(told, intervals)
