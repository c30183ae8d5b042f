"""Shares of face-time by emotion: what the model's answers on everything and people's on a random part tell
together, with intervals that hold however wrong the model is.

Prediction-powered inference (Angelopoulos et al. 2023, doi 10.1126/science.adi6000), with the weight of the
model chosen by the data as in PPI++ (arXiv 2311.01453). An archive is finite and read as a whole, so it is
the regression estimator of survey sampling, of a ratio: sum over units of w (y - l f) / sum of w, + l mean f.
Its variance is the jackknife's over the units that were drawn, which also counts that l was chosen; the
interval is made on the scale of the log-odds. What was drawn together (all windows of a video) is one unit:
it resembles itself.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FEWEST = 10
"""Units below which the model is not listened to: its weight could not be chosen by so few."""
_LEVEL = 0.95

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Audit:
    """What people said of n windows, of U units. seconds, truth, guess: (n,): how long each is, whether it
    shows the emotion (1, 0, or the part of several people who said so), and the model's probability of it;
    unit: (n,) int, 0 to U - 1."""

    seconds: Vector
    truth: Vector
    guess: Vector
    unit: NDArray[np.int64]

    def sums(self, values: Vector) -> Vector:
        """(U,)"""
        summed: Vector = np.bincount(self.unit, self.seconds * values).astype(np.float64)
        return summed


@dataclass(frozen=True)
class Share:
    """Of face-time, with a 95 % interval; error: standard error of the estimate."""

    estimate: float
    low: float
    high: float
    error: float


def share(audit: Audit, guessed: float, units: int, *, listen: bool = True) -> Share | None:
    """guessed: the mean of the model's probability over all face-time; units: how many there were to draw
    from; listen: False for what the audit alone tells. None where fewer than two units were drawn."""
    seconds, truth, guess = (
        audit.sums(v) for v in (np.ones_like(audit.truth), audit.truth, audit.guess)
    )
    drawn = len(seconds)
    if drawn < 2:
        return None
    if truth.sum() in (0.0, seconds.sum()):
        return _unanimous(drawn, truth.sum() > 0)
    if drawn < FEWEST or not listen:
        guess = np.zeros_like(guess)
    whole = _estimated(guessed, *_products(truth, guess, seconds))
    left_out = _estimated(guessed, *_products(truth, guess, seconds, without_each=True))
    variance = (drawn - 1) / drawn * float(np.square(left_out - left_out.mean()).sum())
    error = math.sqrt(variance * (1 - drawn / max(units, drawn)))
    return _on_log_odds(float(whole), error, drawn)


def _products(
    truth: Vector, guess: Vector, seconds: Vector, *, without_each: bool = False
) -> tuple[Vector, ...]:
    """Sums over the units, and over all but each: of truth, guess, seconds, and of their products."""
    pairs = (guess * guess, guess * seconds, seconds * seconds, truth * guess, truth * seconds)
    terms = (truth, guess, seconds, *pairs)
    return tuple(term.sum() - (term if without_each else 0.0) for term in terms)


def _estimated(
    guessed: float, truth: Vector, guess: Vector, seconds: Vector,
    guess2: Vector, guess_seconds: Vector, seconds2: Vector, both: Vector, truth_seconds: Vector,
) -> Vector:  # fmt: skip
    """The regression estimator; the model's weight is that of the least residual, from 0 to 1."""
    y, f = truth / seconds, guess / seconds
    spread = guess2 - 2 * f * guess_seconds + f * f * seconds2
    together = both - y * guess_seconds - f * truth_seconds + y * f * seconds2
    weight = np.clip(together / np.maximum(spread, 1e-12), 0.0, 1.0)
    told: Vector = y + weight * (guessed - f)
    return told


def _unanimous(drawn: int, all_of_them: bool) -> Share:
    """Nobody saw it, or everybody: the interval of Clopper and Pearson."""
    bound = 1 - ((1 - _LEVEL) / 2) ** (1 / drawn)
    return (
        Share(1.0, 1 - bound, 1.0, bound / 2) if all_of_them else Share(0.0, 0.0, bound, bound / 2)
    )


def _on_log_odds(estimate: float, error: float, drawn: int) -> Share:
    least = 1 / (4 * drawn)  # a share is not less than none, however the model is wrong
    estimate = min(max(estimate, least), 1 - least)
    middle = math.log(estimate / (1 - estimate))
    reach = stats.t.ppf((1 + _LEVEL) / 2, drawn - 1) * error / (estimate * (1 - estimate))
    low, high = (
        1 / (1 + math.exp(-min(max(at, -700.0), 700.0))) for at in (middle - reach, middle + reach)
    )
    return Share(estimate, low, high, error)


def lot(key: str, seed: int) -> bytes:
    """By which things are drawn: seed and key alone decide the order, so its first n are a random sample of
    them all, however they stand, and its first m > n hold those."""
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()
