from dataclasses import replace

import cv2
import numpy as np
import pytest

from emolake.jobs.bench.heads import background, camera, heads_of
from emolake.pipeline.config import FacesConfig, WindowsConfig
from emolake.pipeline.faces.cuts import CutDetector, ReplacedPlaces
from emolake.pipeline.faces.detector import Detections
from emolake.pipeline.faces.tracker import Tracker
from emolake.pipeline.faces.windows import track_end, windows_of
from emolake.pipeline.video.frame import Frame


def faces_at(*boxes: tuple[float, float, float, float]) -> Detections:
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(n, 4),
        np.full(n, 0.99, np.float32),
        np.zeros((n, 5, 2), np.float32),
        np.zeros((n, 4), np.float32),
    )


def tracker() -> Tracker:
    return Tracker(min_score=0.9, min_iou=0.25, max_gap_seconds=1.0)


def test_two_people_who_pass_keep_their_tracks() -> None:
    follow = tracker()
    for k in range(20):
        right, left = 10 + 10 * k, 210 - 10 * k
        follow.update(
            k / 4, faces_at((right, 0, right + 50, 60), (left, 80, left + 50, 140)), cut=False
        )
    tracks = follow.finish()
    assert [len(t.sightings) for t in tracks] == [20, 20]
    assert {len({s.box[1] for s in t.sightings}) for t in tracks} == {1}


def test_a_short_gap_is_bridged_and_a_long_one_ends_the_track() -> None:
    short, long = tracker(), tracker()
    box = (0, 0, 50, 50)
    for k in range(12):
        short.update(k / 4, faces_at() if 4 <= k < 7 else faces_at(box), cut=False)
        long.update(k / 4, faces_at() if 4 <= k < 10 else faces_at(box), cut=False)
    assert len(short.finish()) == 1
    assert len(long.finish()) == 2


def test_the_boxes_of_a_bridged_gap_are_interpolated_and_marked() -> None:
    follow = tracker()
    for k in range(8):
        seen = faces_at() if k in (3, 4) else faces_at((8 * k, 0, 8 * k + 50, 50))
        follow.update(k / 4, seen, cut=False)
    (track,) = follow.finish()
    assert [(b.time_s, b.box[0]) for b in track.bridged] == [(0.75, 24), (1.0, 32)]
    assert len(track.sightings) == 6
    (window,) = windows_of(track, 0.0, 2.0, WindowsConfig())
    assert (len(window.sightings), window.n_interpolated) == (6, 2)


def test_a_face_that_leaves_is_not_bridged() -> None:
    follow = tracker()
    for k in range(8):
        follow.update(k / 4, faces_at((0, 0, 50, 50)) if k < 4 else faces_at(), cut=False)
    (track,) = follow.finish()
    assert track.bridged == []


def test_an_unsure_detection_continues_a_track_and_begins_none() -> None:
    follow = tracker()
    hidden = replace(faces_at((4, 2, 54, 52)), scores=np.array([0.75], np.float32))
    stray = replace(faces_at((300, 0, 350, 50)), scores=np.array([0.75], np.float32))
    for k in range(12):
        unsure = stray if k < 2 else hidden
        follow.update(k / 4, faces_at((0, 0, 50, 50)) if k in (2, 3, 11) else unsure, cut=False)
    (track,) = follow.finish()
    assert [s.time_s for s in track.sightings] == [k / 4 for k in range(2, 12)]


def test_a_sure_detection_has_the_first_choice() -> None:
    follow = tracker()
    follow.update(0.0, faces_at((0, 0, 50, 50)), cut=False)
    both = faces_at((0, 0, 50, 50), (10, 0, 60, 50))
    follow.update(0.25, replace(both, scores=np.array([0.75, 0.95], np.float32)), cut=False)
    (track,) = follow.finish()
    assert track.sightings[-1].box[0] == 10


def test_a_track_never_crosses_a_cut() -> None:
    follow = tracker()
    for k in range(8):
        follow.update(k / 4, faces_at((0, 0, 50, 50)), cut=k == 5)
    assert [len(t.sightings) for t in follow.finish()] == [5, 3]


def test_a_lost_face_ends_when_it_was_first_missed() -> None:
    follow = tracker()
    for k in range(8):
        follow.update(k / 4, faces_at((0, 0, 50, 50)) if k < 4 else faces_at(), cut=False)
    (track,) = follow.finish()
    assert track_end(track, 0.25, 100.0) == 1.0
    assert track_end(track, 0.5, 100.0) == 1.0  # known to be gone at 1.0 s


def test_windows_cover_the_track_once() -> None:
    follow = tracker()
    for k in range(19):
        follow.update(3 + k / 4, faces_at((0, 0, 50, 50)), cut=False)
    (track,) = follow.finish()
    end = track_end(track, 0.25, 7.6)
    windows = windows_of(track, 3.0, end, WindowsConfig())
    assert [(w.index, w.start_s, w.end_s) for w in windows] == [(0, 3, 4), (1, 4, 6), (2, 6, 7.6)]
    assert [len(w.sightings) for w in windows] == [4, 8, 7]
    times = [s.time_s for w in windows for s in w.sightings]
    assert times == sorted(set(times))


def test_a_window_takes_no_more_frames_than_asked() -> None:
    follow = tracker()
    for k in range(32):
        follow.update(k / 16, faces_at((0, 0, 50, 50)), cut=False)
    (track,) = follow.finish()
    (window,) = windows_of(track, 0.0, 2.0, WindowsConfig(frames_per_window=4))
    assert [round(s.time_s * 16) for s in window.sightings] == [0, 10, 21, 31]


def test_cuts_are_changes_of_picture_and_not_of_light() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 120, (90, 160, 3), np.uint8)
    other = rng.integers(130, 255, (90, 160, 3), np.uint8)
    is_cut = CutDetector(0.5)
    assert [is_cut(f) for f in (one, one + 8, other, other, one)] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_face_that_jumps_out_of_its_box_is_still_itself() -> None:
    follow = tracker()
    for k in range(8):
        follow.update(k / 4, faces_at((55 * k, 0, 55 * k + 50, 60)), cut=False)
    assert [len(t.sightings) for t in follow.finish()] == [8]


def test_a_face_of_another_size_beside_a_lost_one_is_somebody_else() -> None:
    follow = tracker()
    for k in range(8):
        follow.update(k / 4, faces_at((0, 0, 50, 60) if k < 4 else (40, 10, 70, 46)), cut=False)
    assert [len(t.sightings) for t in follow.finish()] == [4, 4]


def test_who_walks_on_behind_something_is_found_again_where_the_way_leads() -> None:
    follow = tracker()
    for k in range(12):
        seen = faces_at() if 4 <= k < 7 else faces_at((25 * k, 0, 25 * k + 50, 60))
        follow.update(k / 4, seen, cut=False)
    (track,) = follow.finish()
    assert len(track.sightings) == 9
    assert [b.box[0] for b in track.bridged] == [100, 125, 150]


def pictures(count: int) -> list[Frame]:
    """Places of their own colours and edges, (135, 240, 3)."""
    rng = np.random.default_rng(1)
    small = [rng.integers(0, 120, (9, 16, 3), np.uint8) + np.uint8(60 * k) for k in range(count)]
    return [np.asarray(cv2.resize(s, (240, 135), interpolation=cv2.INTER_CUBIC)) for s in small]


def cuts_of(*frames: Frame) -> list[int]:
    is_cut = CutDetector(FacesConfig().cut_threshold)
    return [k for k, frame in enumerate(frames) if is_cut(frame)]


def test_a_flash_keeps_the_track_and_the_cut_after_it_is_seen() -> None:
    one, other = pictures(2)
    flash = np.clip(one * 1.8 + 80, 0, 255).astype(np.uint8)
    white = np.full_like(one, 255)
    assert cuts_of(one, one, flash, one, one) == []
    assert cuts_of(one, one, white, one, one) == []
    assert cuts_of(one, one, white, other, other) == [3]
    follow, is_cut = tracker(), CutDetector(FacesConfig().cut_threshold)
    for k, frame in enumerate((one, one, flash, white, one, one)):
        seen = faces_at() if k in (2, 3) else faces_at((0, 0, 50, 50))
        follow.update(k / 4, seen, cut=is_cut(frame))
    assert len(follow.finish()) == 1


def test_a_dissolve_ends_the_track_once_however_long_it_takes() -> None:
    one, other = pictures(2)
    for steps in (1, 2, 4, 6):
        mixed = [
            cv2.addWeighted(one, 1 - part, other, part, 0).astype(np.uint8)
            for part in np.arange(1, steps + 1) / (steps + 1)
        ]
        frames = [one, one, *mixed, other, other, other]
        (cut,) = cuts_of(*frames)
        assert 2 <= cut <= steps + 2
        follow = tracker()
        for k in range(len(frames)):
            follow.update(k / 4, faces_at((0, 0, 50, 50)), cut=k == cut)
        assert len(follow.finish()) == 2


def test_a_camera_that_moves_makes_no_cut() -> None:
    place = np.hstack(pictures(2) + pictures(3)[1:])
    pan = [np.ascontiguousarray(place[:, 12 * k : 12 * k + 240]) for k in range(20)]
    assert cuts_of(*pan) == []
    whip = [np.ascontiguousarray(place[:, x : x + 240]) for x in (0, 0, 100, 200, 200)]
    assert cuts_of(*whip) == []


def test_a_dip_to_black_ends_the_shot_only_where_another_place_comes_up() -> None:
    one, other = pictures(2)
    for steps in (1, 3, 6):
        down = [(one * part).astype(np.uint8) for part in np.arange(steps)[::-1] / steps]
        for after, told in ((one, 0), (other, 1)):
            up = [(after * part).astype(np.uint8) for part in np.arange(1, steps + 1) / steps]
            cuts = cuts_of(one, one, *down, *up, after, after)
            assert len(cuts) == told
            assert all(cut == 2 + steps for cut in cuts), "as soon as it shows"


def test_a_picture_and_its_negative_are_no_error() -> None:
    (one,) = pictures(1)
    negative = np.asarray(255 - one, np.uint8)
    grey = np.full_like(one, 127)
    mixed = [cv2.addWeighted(one, 1 - p, negative, p, 0) for p in (0.25, 0.4, 0.6, 0.75)]
    assert cuts_of(one, one, *mixed, negative, negative, grey, one, one) is not None


def _halves(right: int, k: int = 0, light: float = 1.0) -> np.ndarray:
    """(27, 48, 3) int16 cells of a place beside one of several others, with a little noise."""
    places = [np.random.default_rng(n).normal(120, 50, (27, 24, 3)) for n in range(3)]
    both = np.hstack([places[0], places[right] * light])
    return (both + np.random.default_rng(100 + k).normal(0, 3, both.shape)).astype(np.int16)


def test_a_picture_that_takes_the_place_of_another_is_told_and_light_and_what_goes_on_are_not() -> (
    None
):
    boxes = np.array([[8, 8, 14, 16], [33, 8, 39, 16]], np.float32)
    told, replaced = [], ReplacedPlaces()
    for k, (right, light) in enumerate([(1, 1), (1, 1), (1, 0.5), (1, 1), (2, 1), (2, 1), (1, 1)]):
        told.append(replaced(_halves(right, k, light), boxes, cut=False).tolist())
    assert told == [[False, False]] * 4 + [[False, True], [False, False], [False, True]]
    assert not replaced(_halves(0, 9), boxes, cut=True).any(), "a cut is everywhere"
    assert not replaced(_halves(1, 9), boxes, cut=False).any(), "nothing is known of how it moves"


@pytest.mark.parametrize(
    ("moved", "turned", "banner"),
    [(0.2, 0, False), (0.3, 0, False), (0, 40, False), (0, 0, True)],
)
@pytest.mark.parametrize("plain", [True, False])
def test_whoever_moves_or_is_captioned_in_a_still_picture_is_not_replaced(
    moved: float, turned: float, banner: bool, plain: bool
) -> None:
    heads = heads_of(None, np.random.default_rng(0), 8)
    for number, head in enumerate(heads):
        rng, replaced = np.random.default_rng(number), ReplacedPlaces()
        scene = background(rng)
        if plain:
            scene[:] = rng.integers(60, 220, 3)
        for k in range(4):
            picture, late = scene.copy(), k == 3
            matrix = head.pose(480 + late * moved * 160, 240, 160, late * turned)
            box = head.paste(picture, matrix)
            if late and banner:
                picture[int(box[3]) + 12 : int(box[3]) + 92] = (10, 40, 190)
            cells = cv2.resize(camera(picture, rng), (80, 45), interpolation=cv2.INTER_AREA)
            told = replaced(cells.astype(np.int16), box[None] / 12, cut=False)
        assert not told.any()


def test_whose_picture_is_replaced_ends_and_the_others_go_on() -> None:
    follow = tracker()
    for k in range(8):
        two = faces_at((10, 10, 50, 60), (100 + k // 4, 10, 140, 60))
        follow.update(k / 4, two, cut=False, replaced=np.array([False, k == 4]))
    spans = [(t.sightings[0].time_s, t.sightings[-1].time_s) for t in follow.finish()]
    assert spans == [(0, 1.75), (0, 0.75), (1.0, 1.75)]


def test_who_was_hidden_a_moment_ago_is_not_replaced() -> None:
    follow = tracker()
    for k in range(8):
        shown = faces_at() if k == 3 else faces_at((10, 10, 50, 60))
        follow.update(k / 4, shown, cut=False, replaced=np.full(len(shown), k == 4))
    assert len(follow.finish()) == 1
