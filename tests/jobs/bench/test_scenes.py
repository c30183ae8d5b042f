"""The generated scenes' own parts: their truth is right, and their figures can be bad."""

import math
from argparse import Namespace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from emolake.jobs.bench import films
from emolake.jobs.bench.films import Change
from emolake.jobs.bench.heads import SIZE, Head, heads_of
from emolake.jobs.bench.poses import pose_errors
from emolake.jobs.bench.scenes import _scored, bench_scenes, count_found, table, tracked
from emolake.jobs.bench.sheet import scenes_sheet
from emolake.jobs.bench.tracking import cut_errors, hota, scores, without_optional
from emolake.pipeline.config import FacesConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import Detections


def box(x: float, y: float = 0.0, side: float = 100.0) -> np.ndarray:
    return np.array([x, y, x + side, y + side], np.float32)


@pytest.fixture(scope="module")
def heads() -> list[Head]:
    return heads_of(None, np.random.default_rng(0), 6)


def test_a_pasted_face_lies_in_the_box_that_its_homography_tells() -> None:
    red = np.zeros((120, 120, 4), np.uint8)
    cv2.ellipse(red, (60, 60), (25, 35), 0, 0, 360, (255, 0, 0, 255), -1)
    head = Head(red, np.array([35, 25, 85.5, 95.5], np.float32))
    for roll, yaw, width in ((0, 0, 50), (30, 0, 80), (90, 0, 20), (20, 45, 120), (180, 60, 64)):
        frame = np.zeros((540, 960, 3), np.uint8)
        told = head.paste(frame, head.pose(400.3, 250.7, width, roll, yaw))
        ys, xs = np.nonzero(frame[..., 0] > 127)
        drawn = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(told - drawn).max() < 0.03 * width + 1, (roll, yaw, width)
        if not yaw and not roll:
            assert told[2] - told[0] == pytest.approx(width, rel=1e-3)


def test_turned_by_a_quarter_the_box_has_its_sides_swapped(heads) -> None:
    upright, lying = (heads[0].box(heads[0].pose(300, 200, 60, roll)) for roll in (0, 90))
    assert upright[2] - upright[0] == pytest.approx(lying[3] - lying[1], rel=0.01)
    assert upright[3] - upright[1] == pytest.approx(lying[2] - lying[0], rel=0.01)


def test_one_seed_draws_one_scene(heads) -> None:
    one, other, third = (
        films.still(films.CONDITIONS[3], heads, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (one[0] == other[0]).all()
    assert not (one[0] == third[0]).all()


def test_every_condition_shows_the_faces_it_says_within_the_frame(heads) -> None:
    for condition in films.CONDITIONS:
        picture, truth = films.still(condition, heads, np.random.default_rng(3))
        assert picture.shape == (SIZE[1], SIZE[0], 3)
        assert len(truth) == condition.count
        for x1, y1, x2, y2 in truth.values():
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            assert 0 < centre[0] < SIZE[0]
            assert 0 < centre[1] < SIZE[1]


def test_a_face_that_shows_for_a_moment_shows_for_that_moment(heads) -> None:
    for seed in range(2):
        film = films.brief(heads, 0.5, np.random.default_rng(seed))
        assert sum(1 in here for here in film.truth) == 2


def test_who_is_covered_or_turned_away_need_not_be_found() -> None:
    head = Head(np.zeros((100, 80, 4), np.uint8), np.array([20, 30, 60, 80], np.float32))
    still = {"speed": np.zeros(2), "sway": np.zeros(4)}
    far = films.Walker(head, 40, np.array([0.5, 0.5]), away_s=(math.inf, math.inf), **still)
    near = films.Walker(head, 60, np.array([0.5, 0.5]), away_s=(1.0, 2.0), **still)
    film = films.crowd_film([far, near], np.random.default_rng(0), 3.0, drawn=False)
    assert all(0 in here for here in film.optional)
    assert [1 in here for here in film.truth] == [not 4 <= k < 8 for k in range(12)]


def test_figures_of_a_swap_are_those_computed_by_hand() -> None:
    pytest.importorskip("motmetrics")
    truth = [{0: box(0), 1: box(500)}] * 4
    told = [{7: box(0), 8: box(500)}] * 2 + [{8: box(0), 7: box(500)}] * 2
    found = scores(truth, told)
    assert found.mota == pytest.approx(1 - 2 / 8)  # two switches
    assert found.idf1 == pytest.approx(0.5)  # each track is the right one for half the time
    # Each of four pairs is right in 2 frames of 4 + 4 - 2: A = 1/3, D = 1.
    assert found.hota == pytest.approx(math.sqrt(1 / 3))
    assert (found.fragments, found.switches) == (2.0, 2)


def test_hota_of_a_lost_half_is_computed_by_hand() -> None:
    truth = [{0: box(0)}] * 4
    assert hota(truth, truth) == pytest.approx(1.0)
    assert hota(truth, [{0: box(0)}] * 2 + [{}] * 2) == pytest.approx(0.5)
    # Boxes with IoU 60 / 140 count at the 8 of 19 thresholds up to 0.4.
    assert hota(truth, [{0: box(40)}] * 4) == pytest.approx(8 / 19)


def test_boxes_on_optional_faces_count_for_nothing_and_strangers_do() -> None:
    told = {1: box(0), 2: box(500), 3: box(800)}
    assert set(without_optional(told, {0: box(0)}, {1: box(505)})) == {1, 3}


def test_a_found_face_counts_for_one_true_face() -> None:
    faces = Detections(
        box(10)[None], np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32), np.zeros((1, 0))
    )
    assert count_found({0: box(0), 1: box(20)}, faces) == 1
    assert count_found({0: box(300)}, faces) == 0


def test_cuts_are_counted_by_hand() -> None:
    changes = [Change("cut", 10, 10), Change("dissolve", 20, 24), Change("cut", 40, 40)]
    assert cut_errors(changes, [10, 21, 24, 30]) == (2, 1, 1)


@pytest.mark.parametrize(("count", "least"), [(10, 0.9), (30, 0.8)])
def test_a_crowd_on_noisy_truth_keeps_its_identities(count: int, least: float) -> None:
    pytest.importorskip("motmetrics")
    head = Head(np.zeros((100, 80, 4), np.uint8), np.array([20, 30, 60, 80], np.float32))
    idf1 = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        film = films.crowd_film(films.crowd([head], count, rng), rng, 8.0, drawn=False)
        idf1.append(_scored(film, tracked(film, FacesConfig(), rng)).idf1)
    assert np.mean(idf1) >= least


def test_the_entry_measures_what_is_asked_and_sets_it_out(monkeypatch) -> None:
    monkeypatch.setattr(films, "edited", partial(films.edited, shots=3))
    options = Namespace(
        part=["cuts"], detector=None, faces=None, scenes=1, clips=None, truth=None, sheet=None
    )
    rows = [m.row() for m in bench_scenes([], Path(), options)]
    assert {row["name"].split(" | ")[0] for row in rows} == {"shot changes"}
    assert any(line.startswith("| shot changes: F1 | ") for line in table(rows))


def test_mistakes_are_told_in_a_line(heads, tmp_path) -> None:
    options = Namespace(part=["cuts"], detector=["mtcnn,min_fase=3"], faces=None, scenes=1)
    with pytest.raises(UserError, match="min_face"):
        next(bench_scenes([], tmp_path, options))
    with pytest.raises(UserError, match="shows no face"):
        heads_of(tmp_path, np.random.default_rng(0))
    with pytest.raises(UserError, match="cannot be written"):
        scenes_sheet(heads, {}, tmp_path / "none" / "sheet.png")


def test_errors_of_a_head_s_turn_grow_with_those_of_its_points() -> None:
    few, many = (pose_errors(30, np.random.default_rng(0), 200, noise) for noise in (0.03, 0.2))
    assert (few < many).all()
    assert few.max() < 10
