"""Shares of face-time by emotion: what the model's answers on everything and people's on a random part tell
together, with intervals that hold however wrong the model is.

Prediction-powered inference (Angelopoulos et al. 2023, doi 10.1126/science.adi6000), with the weight of the
model chosen by the data as in PPI++ (arXiv 2311.01453). An archive is finite and read as a whole, so it is
the regression estimator of survey sampling: of the seconds on which people could tell an emotion, the part
that shows it, p = sum y / sum d, corrected by l (F - sum f / sum t), where f are the model's probabilities by
seconds, t all seconds that were drawn, and F the mean probability over the archive. Its variance is the
jackknife's over the units that were drawn, which also counts that l was chosen. What was drawn together (all
windows of a video) is one unit: it resembles itself.

An error of the model that is rare is rarely among those drawn, and a jackknife knows what was drawn alone. So
the interval is that of a sample with two more windows (of half a weight), one that shows it where the
model sees none and one the other way round, as Agresti and Coull (1998) add successes and failures; on the
scale of the log-odds.
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
_ADDED = 0.5  # of a window, twice

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Audit:
    """What people said of n windows, of U units. seconds, told, truth, guess: (n,): how long each is; whether
    people could tell an emotion (1 or 0); whether it shows the one in question (1, 0, or the part of several
    people who said so); and the model's probability of it. unit: (n,) int, 0 to U - 1."""

    seconds: Vector
    told: Vector
    truth: Vector
    guess: Vector
    unit: NDArray[np.int64]

    def sums(self) -> Units:
        def of(values: Vector) -> Vector:
            return np.bincount(self.unit, self.seconds * values).astype(np.float64)

        return Units(
            of(np.ones_like(self.told)), of(self.told), of(self.told * self.truth), of(self.guess)
        )


@dataclass(frozen=True)
class Units:
    """(U,) seconds each: all, those that people could tell of, those that show it, and those that the model
    gives it."""

    all: Vector
    told: Vector
    shown: Vector
    guessed: Vector

    def with_both(self, seconds: float) -> Units:
        """And two units of so many seconds that disagree with the model, either way."""
        size = _ADDED * seconds
        told = size * float(self.told.sum() / self.all.sum())
        return Units(
            np.append(self.all, [size, size]),
            np.append(self.told, [told, told]),
            np.append(self.shown, [told, 0.0]),
            np.append(self.guessed, [0.0, size]),
        )


@dataclass(frozen=True)
class Share:
    """Of face-time, with a 95 % interval; error: standard error, of an archive without end."""

    estimate: float
    low: float
    high: float
    error: float


def share(
    audit: Audit,
    guessed: float,
    windows: int | None = None,
    *,
    of_all: int | None = None,
    listen: bool = True,
) -> Share | None:
    """guessed: the mean of the model's probability over all face-time; windows: how many there were to draw
    single ones from, None for other units; of_all: where those, and `guessed`, are of a random part, how
    many there are in all, whose share is meant; listen: False for what the audit alone tells. None where
    fewer than two units were drawn, or nobody could tell anything."""
    units = audit.sums()
    drawn = len(units.all)
    if drawn < 2 or not units.told.any():
        return None
    listen = listen and drawn >= FEWEST
    unanimous = not units.shown.any() or np.array_equal(units.shown, units.told)
    # What is rare comes by windows; but where nobody has seen it, it may fill whole units.
    added = units.with_both(float(units.all.mean() if unanimous else audit.seconds.mean()))
    middle = float(_estimated(guessed, added, listen))
    number = len(added.all)

    def variance(listen: bool) -> float:
        left_out = _estimated(guessed, added, listen, without_each=True)
        return (number - 1) / number * float(np.square(left_out - left_out.mean()).sum())

    error = math.sqrt(variance(listen))
    # Units of unequal size are worth fewer equal ones (Kish 1965).
    freedom = max(float(units.told.sum() ** 2 / np.square(units.told).sum()) - 1, 1.0)
    # Two phases: what was drawn tells of the part, with the model's help, and the part of all, without it.
    part = drawn / max(windows, drawn) if windows is not None else 0.0
    beyond = part - drawn / max(windows, of_all, drawn) if windows and of_all else 0.0
    estimate = min(max(float(_estimated(guessed, units, listen)), 0.0), 1.0)
    if part == 1.0 and not beyond:
        return Share(estimate, estimate, estimate, error)
    spread = math.sqrt(error**2 * (1 - part) + (variance(False) * beyond if beyond else 0.0))
    reach = stats.t.ppf((1 + _LEVEL) / 2, freedom) * spread
    low, high = _on_log_odds(middle, reach, 1 / (4 * number))
    # Nobody saw it, or everybody: there is nothing to bound from below, or from above.
    low = 0.0 if not units.shown.any() else min(low, estimate)
    high = 1.0 if np.array_equal(units.shown, units.told) else max(high, estimate)
    return Share(estimate, low, high, error)


def worth(both: Share, alone: Share, drawn: int, windows: int | None) -> int | None:
    """How many units would have told as much without the model; None where that is not to be known."""
    if not both.error or not alone.error:
        return None
    ratio = (both.error / alone.error) ** 2
    if windows is None:
        return round(drawn / ratio)
    there = max(windows, drawn)
    return round(1 / (1 / there + (1 / drawn - 1 / there) * ratio))


def _estimated(guessed: float, units: Units, listen: bool, *, without_each: bool = False) -> Vector:
    """The regression estimator of some units, or (U,) of all but each. The model's weight is that of the
    least residual, from 0 to where what it says is taken at its word."""

    def total(values: Vector) -> Vector:
        left: Vector = values.sum() - (values if without_each else 0.0)
        return left

    every, told, shown, guess = (
        total(v) for v in (units.all, units.told, units.shown, units.guessed)
    )
    told = np.maximum(told, 1e-12)
    p, f = shown / told, guess / every
    if not listen:
        return p
    # Sums of (shown - p told) (guessed - f all), and of the latter squared.
    together = (
        total(units.shown * units.guessed)
        - f * total(units.shown * units.all)
        - p * total(units.told * units.guessed)
        + p * f * total(units.told * units.all)
    )
    spread = (
        total(units.guessed**2)
        - 2 * f * total(units.guessed * units.all)
        + f * f * total(units.all**2)
    )
    word = every / told
    weight = np.clip(word * together / np.maximum(spread, 1e-12), 0.0, word)
    estimated: Vector = p + weight * (guessed - f)
    return estimated


def _on_log_odds(middle: float, reach: float, least: float) -> tuple[float, float]:
    middle = min(max(middle, least), 1 - least)
    odds, reach = math.log(middle / (1 - middle)), reach / (middle * (1 - middle))
    low, high = (
        1 / (1 + math.exp(-min(max(at, -700.0), 700.0))) for at in (odds - reach, odds + reach)
    )
    return low, high


def lot(key: str, seed: int) -> bytes:
    """By which things are drawn: seed and key alone decide the order, so its first n are a random sample of
    them all, however they stand, and its first m > n hold those."""
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()
