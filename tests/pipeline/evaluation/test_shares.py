"""Intervals of shares hold what they say, on archives whose shares are known, whatever the model is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from emolake.pipeline.evaluation.shares import FEWEST, Audit, lot, share

SHARES = np.array([0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02])
LOOKED_AT = (0, 2, 5)  # a common, a middling and a rare one
VIDEOS, EACH, AUDITS = 400, 50, 400


@dataclass(frozen=True)
class Archive:
    """Windows of videos that resemble themselves, in what they show and in how wrong the model is on them."""

    video: NDArray[np.int64]
    seconds: NDArray[np.float64]
    truth: NDArray[np.float64]
    guess: NDArray[np.float64]

    def mean(self, of: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.seconds @ of / self.seconds.sum()


def archive(model: str) -> Archive:
    random = np.random.default_rng(7)
    n, labels = VIDEOS * EACH, len(SHARES)
    video = np.repeat(np.arange(VIDEOS), EACH)
    mix = random.dirichlet(6 * SHARES, VIDEOS)
    shown = (mix[video].cumsum(1) < random.random((n, 1))).sum(1).clip(0, labels - 1)
    right = (
        random.random(n)
        < {"good": 0.85, "biased": 0.6}.get(model, 0.0) + random.normal(0, 0.12, VIDEOS)[video]
    )
    # A biased one takes what it does not know for one and the same emotion.
    taken = np.ones(n, int) if model == "biased" else random.choice(labels, n, p=SHARES)
    logits = 3 * np.eye(labels)[np.where(right, shown, taken)] + random.normal(size=(n, labels))
    guess = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if model == "useless":
        guess = random.dirichlet(np.ones(labels), n)
    return Archive(video, random.choice([2.0, 2.0, 1.0, 0.5], n), np.eye(labels)[shown], guess)


def audits(of: Archive, windows: int = 0, videos: int = 0, *, as_videos: bool = True, **more: bool):
    """(audits, emotions) whether the interval held the truth, and how wide it was."""
    random = np.random.default_rng(3)
    truth, guessed = of.mean(of.truth), of.mean(of.guess)
    held, width = np.zeros((2, AUDITS, len(LOOKED_AT)))
    for k in range(AUDITS):
        if videos:
            drawn = np.isin(of.video, random.choice(VIDEOS, videos, replace=False)).nonzero()[0]
        else:
            drawn = random.choice(len(of.video), windows, replace=False)
        names = of.video[drawn] if videos and as_videos else drawn
        unit = np.unique(names, return_inverse=True)[1]
        there = VIDEOS if videos and as_videos else len(of.video)
        for at, label in enumerate(LOOKED_AT):
            seen = Audit(of.seconds[drawn], of.truth[drawn, label], of.guess[drawn, label], unit)
            told = share(seen, guessed[label], there, **more)
            assert told is not None
            held[k, at] = told.low <= truth[label] <= told.high
            width[k, at] = told.high - told.low
    return held, width


@pytest.mark.parametrize("model", ["good", "biased", "useless"])
def test_the_interval_holds_the_truth_in_95_of_100_audits(model: str) -> None:
    of = archive(model)
    held, width = audits(of, windows=200)
    assert 0.93 <= held.mean() <= 0.97
    assert held.mean(0).min() >= 0.92, "the rare one as well"
    _, alone = audits(of, windows=200, listen=False)
    ratio = (alone / width).mean(0) ** 2  # by so many times more labels without the model
    assert ratio[0] > 1.8 if model == "good" else ratio[0] > 0.97, "a useless model costs nothing"


def test_what_is_drawn_together_counts_as_one() -> None:
    of = archive("biased")
    held, _ = audits(of, videos=40)
    assert 0.93 <= held.mean() <= 0.97
    taken_apart, _ = audits(of, videos=40, as_videos=False)
    assert taken_apart.mean() < 0.85, "the naive interval of such an audit is too narrow"


def test_counted_answers_carry_the_models_bias() -> None:
    of = archive("biased")
    counted = of.mean(np.eye(len(SHARES))[of.guess.argmax(1)])
    assert counted[1] > of.mean(of.truth)[1] + 0.2


def seen(truth: list[float], guess: list[float]) -> Audit:
    n = len(truth)
    return Audit(np.ones(n), np.array(truth), np.array(guess), np.arange(n))


def test_what_nobody_saw_may_be_there_all_the_same() -> None:
    told = share(seen([0.0] * 100, [0.1] * 100), 0.1, 10_000)
    assert told is not None
    assert (told.estimate, told.low) == (0.0, 0.0)
    assert told.high == pytest.approx(1 - 0.025**0.01)
    everybody = share(seen([1.0] * 100, [0.9] * 100), 0.9, 10_000)
    assert everybody is not None
    assert everybody.low == pytest.approx(0.025**0.01)


def test_an_archive_that_was_seen_whole_is_known() -> None:
    told = share(seen([1.0, 0.0] * 50, [0.5] * 100), 0.5, 100)
    assert told is not None
    assert (told.low, told.estimate, told.high) == pytest.approx((0.5, 0.5, 0.5))


def test_too_few_do_not_choose_the_models_weight() -> None:
    few = seen([1.0, 0.0] * (FEWEST // 2 - 1), [0.9, 0.1] * (FEWEST // 2 - 1))
    listening, alone = share(few, 0.8, 1000), share(few, 0.8, 1000, listen=False)
    assert listening == alone
    assert share(seen([1.0], [0.9]), 0.8, 1000) is None


def test_lots_are_drawn_by_seed_and_key_alone() -> None:
    keys = [f"video {k}" for k in range(1000)]
    first = sorted(keys, key=lambda key: lot(key, 1))
    some = keys[::3]
    assert sorted(some, key=lambda key: lot(key, 1)) == [key for key in first if key in some]
    assert sorted(keys, key=lambda key: lot(key, 2))[:50] != first[:50]
