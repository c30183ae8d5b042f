"""How far figures can be trusted: intervals that hold, tests that tell models apart, what a panel agrees."""

from collections.abc import Iterator

import numpy as np
import pytest

from emolake.pipeline.evaluation.intervals import (
    Predictions,
    bootstrap,
    compared,
    one_person,
    with_intervals,
)
from emolake.pipeline.evaluation.metrics import against_votes, reliability, risk_coverage
from emolake.pipeline.evaluation.scoring import Sample, pairs, scored

LABELS = ("happiness", "neutral", "surprise")


def drawn(rng: np.random.Generator, n: int, right: float, units: int | None = None) -> Predictions:
    """Samples of three labels, of which a model gets the part `right`; those of a unit stand or fall
    together."""
    truth = rng.integers(0, 3, n)
    unit = np.arange(n) if units is None else np.arange(n) % units
    hit = (rng.random(unit.max() + 1) < right)[unit]
    guess = np.where(hit, truth, (truth + 1) % 3)
    probabilities = np.full((n, 3), 0.1)
    probabilities[np.arange(n), guess] = 0.8
    return Predictions(probabilities, truth, None, unit.astype(np.int64))


@pytest.mark.parametrize("units", [None, 40])
def test_the_interval_holds_the_truth_as_often_as_it_says(units: int | None) -> None:
    """Samples of one video resemble each other, and the interval knows."""

    def holds() -> Iterator[bool]:
        rng = np.random.default_rng(0)
        for _ in range(200):
            given = drawn(rng, 400, 0.7, units)
            low, high = bootstrap(
                given.units,
                lambda counts, g=given: {"war": float(np.average(g.right, weights=counts))},
                draws=200,
            )["war"]
            yield low <= 0.7 <= high

    assert 0.90 <= np.mean(list(holds())) <= 0.99


def test_two_models_on_the_same_samples_are_told_apart_where_they_differ() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 500)

    def model(wrong: np.ndarray) -> Predictions:
        guess = np.where(wrong, (truth + 1) % 3, truth)
        return Predictions(np.eye(3)[guess] * 0.7 + 0.1, truth, None, np.arange(500))

    hard = rng.random(500) < 0.2
    better, worse = model(hard), model(hard | (rng.random(500) < 0.06))
    told = compared(better, worse)
    assert told["war"] > 0
    assert told["war_low"] > 0, "paired, a small difference shows"
    assert told["p_mcnemar"] < 0.001
    assert told["only_second_right"] == 0
    same = compared(better, better)
    assert (same["war"], same["p_mcnemar"]) == (0, 1)


def test_one_person_against_the_others_by_hand() -> None:
    # Ten saw one thing; nine against one; a tie of the others that either side breaks half the time.
    votes = np.array([[10, 0, 0], [9, 1, 0], [5, 5, 0]], float)
    told = one_person(votes, np.array([0, 0, 1]))
    # 5 to 5: whoever is left out, the other five of four win: nobody agrees.
    assert told["war"] == pytest.approx((1 + 0.9 + 0) / 3)
    assert told["uar"] == pytest.approx(((1 + 0.9) / 2 + 0) / 2)


def test_agreement_with_everybody_by_hand() -> None:
    votes = np.array([[0.6, 0.4], [1.0, 0.0]])
    told = against_votes(np.array([[0.5, 0.5], [0.25, 0.75]]), votes)
    assert told["soft_accuracy"] == pytest.approx((0.6 + 0.0) / 2)
    assert told["cross_entropy"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert told["total_variation"] == pytest.approx((0.1 + 0.75) / 2)
    perfect = against_votes(votes, votes)
    assert perfect["total_variation"] == 0


def test_abstaining_leaves_what_the_model_is_surest_of() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    curve = risk_coverage(confidence, np.array([True, True, True, False, False]), steps=5)
    assert [(c.coverage, round(c.accuracy, 3), c.threshold) for c in curve] == [
        (1.0, 0.6, 0.5),
        (0.8, 0.75, 0.6),
        (0.6, 1.0, 0.7),
        (0.4, 1.0, 0.8),
        (0.2, 1.0, 0.9),
    ]


def test_bins_hold_every_sample_once() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 300)
    bins = reliability(probabilities, probabilities.argmax(1))
    assert sum(b.n for b in bins) == 300
    assert all(b.accuracy == 1 for b in bins)


def sample(right: bool, sure: float, k: int, **more: object) -> Sample:
    other = (1 - sure) / 2
    scores = {"happiness": sure if right else other, "neutral": other, "surprise": other}
    if not right:
        scores["neutral"] = sure
    return Sample(scores, 0, unit=str(k), **more)  # type: ignore[arg-type]


def test_an_entry_tells_intervals_slices_and_what_abstaining_brings() -> None:
    samples = [sample(True, 0.9, k, attributes={"age": "20-29"}) for k in range(8)]
    samples += [
        sample(False, 0.5, k, quality={"face_px": 20.0, "yaw": -40.0}) for k in range(8, 10)
    ]
    samples.append(Sample(None, 0))
    told = scored(samples, LABELS)
    assert (told["n"], told["unreadable"], told["war"]) == (10, 1, 0.8)
    assert told["war_low"] < 0.8 < told["war_high"]
    assert told["war_covered"] == 1.0
    assert told["by_attribute"]["age"]["20-29"]["war"] == 1
    assert told["by_quality"]["face_px"]["0: 0 to 32 px"]["n"] == 2
    assert told["by_quality"]["yaw"]["2: 30 to 45 degrees"]["war"] == 0, "left and right are one"
    (pair,) = pairs({"a": samples, "b": samples}, LABELS)
    assert (pair["n"], pair["war"]) == (10, 0)


def test_a_figure_without_an_interval_stands_alone() -> None:
    assert with_intervals({"a": 1.0, "b": 2.0}, {"a": (0.5, 1.5)}) == {
        "a": 1.0,
        "a_low": 0.5,
        "a_high": 1.5,
        "b": 2.0,
    }
