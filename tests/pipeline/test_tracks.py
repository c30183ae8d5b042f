import numpy as np

from pipeline.config import WindowsConfig
from pipeline.faces.cuts import CutDetector
from pipeline.faces.detector import Detections
from pipeline.faces.tracker import Tracker
from pipeline.faces.windows import track_end, windows_of


def faces_at(*boxes: tuple[float, float, float, float]) -> Detections:
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(n, 4),
        np.full(n, 0.99, np.float32),
        np.zeros((n, 5, 2), np.float32),
        np.zeros((n, 4), np.float32),
    )


def tracker() -> Tracker:
    return Tracker(min_iou=0.25, max_gap_seconds=1.0)


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
    assert track_end(track, 4.0, 100.0) == 1.0
    assert track_end(track, 2.0, 100.0) == 1.0  # known to be gone at 1.0 s


def test_windows_cover_the_track_once() -> None:
    follow = tracker()
    for k in range(19):
        follow.update(3 + k / 4, faces_at((0, 0, 50, 50)), cut=False)
    (track,) = follow.finish()
    end = track_end(track, 4.0, 7.6)
    windows = windows_of(track, end, WindowsConfig())
    assert [(w.index, w.start_s, w.end_s) for w in windows] == [(0, 3, 5), (1, 5, 7), (2, 7, 7.6)]
    assert [len(w.sightings) for w in windows] == [8, 8, 3]
    times = [s.time_s for w in windows for s in w.sightings]
    assert times == sorted(set(times))


def test_a_window_takes_no_more_frames_than_asked() -> None:
    follow = tracker()
    for k in range(32):
        follow.update(k / 16, faces_at((0, 0, 50, 50)), cut=False)
    (track,) = follow.finish()
    (window,) = windows_of(track, 2.0, WindowsConfig(frames_per_window=4))
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
