"""The papers' metrics against examples computed by hand."""

import numpy as np
import pytest

from emolake.pipeline.evaluation.answer_metrics import AU_SETS, action_unit_f1, pearson, rouge_l
from emolake.pipeline.evaluation.metrics import classification_scores


def test_action_unit_f1_by_hand() -> None:
    given = [["AU1", "AU2"], ["AU1"], []]
    true = [["AU1"], ["AU2"], ["AU1"]]
    told = action_unit_f1(given, true, (1, 2, 4))
    # AU1: 1 right, given 2, true 2 -> 2/4; AU2: none right of 1 and 1; AU4: never there.
    assert told == {"AU1": 0.5, "AU2": 0.0, "AU4": 0.0, "mean": pytest.approx(1 / 6)}
    assert [len(units) for units in AU_SETS.values()] == [8, 12, 20]


def test_pearson_by_hand() -> None:
    # Deviations -1, 0, 1 and -1, 1, 0: covariance 1, norms sqrt(2) each.
    assert pearson([1, 2, 3], [0, 2, 1]) == pytest.approx(0.5)
    assert pearson([1, 1, 1], [0, 2, 1]) is None


def test_rouge_l_by_hand() -> None:
    # Common subsequence "the face looks", 3 words, of 4 and 5.
    assert rouge_l("The face looks happy.", "the old face looks sad") == pytest.approx(6 / 9)
    assert rouge_l("", "a face") == 0


def test_weighted_f1_and_brier_by_hand() -> None:
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    scores = classification_scores(probabilities, np.array([0, 1, 1, 0]))
    # Label 0: 2 right, given 3, true 2 -> 4/5. Label 1: 1 right, given 1, true 2 -> 2/3.
    assert scores.weighted_f1 == pytest.approx((4 / 5 * 2 + 2 / 3 * 2) / 4)
    assert scores.brier == pytest.approx(2 * (0.04 + 0.36 + 0.09 + 0.01) / 4)
