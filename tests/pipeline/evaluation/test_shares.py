"""Intervals of shares hold what they say, on archives whose shares are known, whatever the model is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from emolake.pipeline.evaluation.shares import FEWEST, Audit, lot, share, worth

SHARES = np.array([0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02])
RIGHT = {"good": 0.85, "biased": 0.6, "sure": 0.97}
LOOKED_AT = (0, 2, 5)  # a common, a middling and a rare one
VIDEOS, EACH, AUDITS = 400, 50, 400


@dataclass(frozen=True)
class Archive:
    """Windows of videos that resemble themselves, in what they show and in how wrong the model is on them."""

    video: NDArray[np.int64]
    seconds: NDArray[np.float64]
    told: NDArray[np.float64]
    truth: NDArray[np.float64]
    guess: NDArray[np.float64]

    def mean(self, of: NDArray[np.float64], among: float | NDArray[np.float64] = 1.0):
        return self.seconds * among @ of / (self.seconds * among).sum()


def archive(model: str) -> Archive:
    random = np.random.default_rng(7)
    n, labels = VIDEOS * EACH, len(SHARES)
    video = np.repeat(np.arange(VIDEOS), EACH)
    mix = random.dirichlet(6 * SHARES, VIDEOS)
    shown = (mix[video].cumsum(1) < random.random((n, 1))).sum(1).clip(0, labels - 1)
    varies = 0.0 if model == "sure" else 0.12
    right = random.random(n) < RIGHT.get(model, 0.0) + random.normal(0, varies, VIDEOS)[video]
    # A biased one takes what it does not know for one and the same emotion.
    taken = np.ones(n, int) if model == "biased" else random.choice(labels, n, p=SHARES)
    answer = np.eye(labels)[np.where(right, shown, taken)]
    guess = np.exp(3 * answer + random.normal(size=(n, labels)))
    guess /= guess.sum(1, keepdims=True)
    if model == "useless":
        guess = random.dirichlet(np.ones(labels), n)
    if model == "sure":
        guess = answer
    # One emotion lasts longer than the others, and of neutral faces people can often not tell.
    seconds = random.choice([2.0, 2.0, 1.0, 0.5], n) * np.where(shown == 2, 1.5, 1.0)
    told = (random.random(n) > np.where(shown == 0, 0.3, 0.05)).astype(float)
    return Archive(video, seconds, told, np.eye(labels)[shown], guess)


def audits(
    of: Archive,
    windows: int = 0,
    videos: int = 0,
    *,
    part: int | None = None,
    as_videos: bool = True,
    **more: bool,
):
    """(audits, emotions) whether the interval held the truth, and how wide it was. part: so many windows are
    drawn from; what the model says of others is not asked."""
    random = np.random.default_rng(3)
    truth, guessed = of.mean(of.truth, of.told), of.mean(of.guess)
    held, width = np.zeros((2, AUDITS, len(LOOKED_AT)))
    for k in range(AUDITS):
        if part is not None:
            there = random.choice(len(of.video), part, replace=False)
            drawn = there[:windows]
            guessed = of.seconds[there] @ of.guess[there] / of.seconds[there].sum()
        elif videos:
            drawn = np.isin(of.video, random.choice(VIDEOS, videos, replace=False)).nonzero()[0]
        else:
            drawn = random.choice(len(of.video), windows, replace=False)
        by_video = videos and as_videos
        unit = np.unique(of.video[drawn] if by_video else drawn, return_inverse=True)[1]
        for at, label in enumerate(LOOKED_AT):
            seen = Audit(
                of.seconds[drawn], of.told[drawn], of.truth[drawn, label], of.guess[drawn, label],
                unit,
            )  # fmt: skip
            there_are = None if by_video else part or len(of.video)
            told = share(seen, guessed[label], there_are, of_all=len(of.video), **more)
            assert told is not None
            held[k, at] = told.low <= truth[label] <= told.high
            width[k, at] = told.high - told.low
    return held, width


@pytest.mark.parametrize("model", ["good", "biased", "useless"])
def test_the_interval_holds_the_truth_in_95_of_100_audits(model: str) -> None:
    of = archive(model)
    held, width = audits(of, windows=200)
    assert 0.93 <= held.mean() <= 0.97
    assert held.mean(0).min() >= 0.93, "the rare one as well"
    _, alone = audits(of, windows=200, listen=False)
    ratio = (alone / width).mean(0) ** 2  # by so many times more labels without the model
    assert ratio[0] > 1.4 if model == "good" else ratio[0] > 0.95, "a useless one costs nothing"


@pytest.mark.parametrize("model", ["good", "useless"])
@pytest.mark.parametrize("part", [200, 300, 2000])
def test_windows_held_back_from_a_model_tell_of_the_whole(model: str, part: int) -> None:
    held, width = audits(archive(model), windows=200, part=part)
    assert 0.93 <= held.mean() <= 0.975
    assert held.mean(0).min() >= 0.925
    of_all = audits(archive(model), windows=200)[1]
    assert (width.mean(0) > 0.95 * of_all.mean(0)).all()


@pytest.mark.parametrize("windows", [30, 60])
def test_a_model_that_is_seldom_wrong_and_always_sure_is_not_taken_at_its_word(
    windows: int,
) -> None:
    held, width = audits(archive("sure"), windows=windows)
    assert held.mean(0).min() >= 0.93
    _, alone = audits(archive("sure"), windows=windows, listen=False)
    assert (width.mean(0) < alone.mean(0)).all(), "and still worth a lot"


def test_what_is_drawn_together_counts_as_one() -> None:
    of = archive("biased")
    held, _ = audits(of, videos=40)
    assert 0.93 <= held.mean() <= 0.97
    taken_apart, _ = audits(of, videos=40, as_videos=False)
    assert taken_apart.mean() < 0.87, "the naive interval of such an audit is too narrow"


def test_counted_answers_carry_the_models_bias() -> None:
    of = archive("biased")
    counted = of.mean(np.eye(len(SHARES))[of.guess.argmax(1)])
    assert counted[1] > of.mean(of.truth)[1] + 0.2


def seen(truth: list[float], guess: list[float], seconds: float = 1.0) -> Audit:
    n = len(truth)
    return Audit(np.full(n, seconds), np.ones(n), np.array(truth), np.array(guess), np.arange(n))


def test_what_nobody_saw_may_be_there_all_the_same() -> None:
    told = share(seen([0.0] * 100, [0.1] * 100), 0.1, 10_000)
    assert told is not None
    assert (told.estimate, told.low) == (0.0, 0.0)
    exact = 1 - 0.025**0.01  # Clopper and Pearson's bound
    assert exact * 0.8 < told.high < exact * 1.5
    everybody = share(seen([1.0] * 100, [0.9] * 100), 0.9, 10_000)
    assert everybody is not None
    assert everybody.high == 1.0
    assert 1 - exact * 1.5 < everybody.low < 1 - exact * 0.8


def test_seconds_and_hours_tell_the_same() -> None:
    truth, guess = [1.0, 0.0, 0.0] * 20, [0.7, 0.2, 0.3] * 20
    one, other = (share(seen(truth, guess, s), 0.4, 1000) for s in (1.0, 3600.0))
    assert one is not None
    assert other is not None
    assert one.low == pytest.approx(other.low)


def test_a_few_large_units_tell_less_than_as_many_equal_ones() -> None:
    """By Student's t, with as many degrees of freedom as equal units would have."""
    halves = [1.0, 0.0] * 6
    alike = share(seen(halves, [0.5] * 12), 0.5)
    seconds = np.array([40.0, 40.0, *[1.0] * 10])
    unequal = share(
        Audit(seconds, np.ones(12), np.array(halves), np.full(12, 0.5), np.arange(12)), 0.5
    )
    assert alike is not None
    assert unequal is not None
    assert unequal.high - unequal.low > 1.3 * (alike.high - alike.low)


def test_the_larger_the_part_that_was_seen_the_less_is_left_to_guess() -> None:
    truth, guess = [1.0, 0.0] * 50, [0.6, 0.4] * 50

    def width(windows: int | None) -> float:
        told = share(seen(truth, guess), 0.5, windows)
        assert told is not None
        return told.high - told.low

    assert width(None) > width(10_000) > 1.3 * width(200)
    assert width(100) == 0.0, "an archive that was seen whole is known"


def test_a_model_is_worth_no_more_than_seeing_all() -> None:
    truth = [1.0, 0.0] * 50
    near = [0.9, 0.1, 0.8, 0.2] * 25
    both, alone = (share(seen(truth, near), 0.5, 200, listen=on) for on in (True, False))
    assert both is not None
    assert alone is not None
    assert 150 < worth(both, alone, 100, 200) <= 200
    assert worth(both, alone, 100, None) > 500


def test_a_model_that_says_the_opposite_is_not_listened_to() -> None:
    told = share(seen([1.0, 0.0] * 50, [0.1, 0.9] * 50), 0.9, 10_000)
    assert told is not None
    assert told.low < 0.5 < told.high


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
