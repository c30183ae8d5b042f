"""What keyframe search promises: the faces of full detection, for a fraction of its work."""

import math
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from emolake.pipeline.config import DecodeConfig, FacesConfig
from emolake.pipeline.faces.detector import Detections, pairwise_iou
from emolake.pipeline.faces.search import FaceSearch, Look
from emolake.pipeline.faces.stage import make_detector
from emolake.pipeline.video.decode import Ending, sampled_frames
from emolake.pipeline.video.frame import Frame, TimedFrame

UPRIGHT = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], np.float32) / 100


def faces_of(*boxes: tuple[float, float, float, float], score: float = 0.99) -> Detections:
    placed = np.array(boxes, np.float32).reshape(-1, 4)
    side = placed[:, 2:] - placed[:, :2]
    points = placed[:, None, :2] + UPRIGHT * side[:, None]
    count = len(placed)
    return Detections(placed, np.full(count, score, np.float32), points, np.zeros((count, 0)))


class Script:
    """A detector that reads each frame's number from its first pixel, and keeps count."""

    feature_dim = 0

    def __init__(self, full: dict[int, Detections], refined_score: float = 0.99) -> None:
        self.full = full
        self.refined_score = refined_score
        self.searched: list[int] = []
        self.refined: list[int] = []
        self.sizes: dict[int, tuple[int, ...]] = {}

    def __call__(self, frames: list[Frame]) -> list[Detections]:
        numbers = [int(frame[0, 0, 0]) for frame in frames]
        self.searched += numbers
        self.sizes |= dict(zip(numbers, (frame.shape[:2] for frame in frames), strict=True))
        return [self.full.get(number, faces_of()) for number in numbers]

    def refine(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> Detections:
        self.refined += [int(frame[0, 0, 0]) for frame in frames]
        return faces_of(*boxes.tolist(), score=self.refined_score)


def film(count: int, *, cut_at: int | None = None, fps: float = 4.0) -> list[TimedFrame]:
    def frame(k: int) -> TimedFrame:
        picture = np.full((90, 160, 3), 200 if cut_at is not None and k >= cut_at else 60, np.uint8)
        picture[0, 0] = k
        return TimedFrame(k / fps, 160, 90, lambda width, height: picture)

    return [frame(k) for k in range(count)]


def search(detector: Script, frames: Iterable[TimedFrame], **options: object) -> list[Look]:
    config = FacesConfig(**{"detect_width": 160} | options)  # type: ignore[arg-type]
    return list(FaceSearch(detector, config)(frames))


def test_whole_frames_are_searched_once_a_second_and_the_last() -> None:
    script = Script({k: faces_of((4 * k, 0, 4 * k + 60, 60)) for k in range(11)})
    looks = search(script, film(11))
    assert script.searched == [0, 4, 8, 10]
    assert sorted(script.refined) == [1, 2, 3, 5, 6, 7, 9]
    assert [look.found().boxes[0, 0] for look in looks] == [4 * k for k in range(11)]


def test_a_shot_is_searched_at_both_its_ends() -> None:
    script = Script({k: faces_of((0, 0, 60, 60)) for k in range(7)})
    looks = search(script, film(12, cut_at=7))
    assert sorted(script.searched) == [0, 4, 6, 7, 8, 11]
    assert [len(look.found()) for look in looks] == [1] * 7 + [0] * 5
    assert [look.cut for look in looks] == [k == 7 for k in range(12)]


def test_a_face_that_comes_or_goes_between_keyframes_is_searched_for() -> None:
    script = Script({k: faces_of((0, 0, 60, 60)) for k in range(6)})
    looks = search(script, film(9))
    assert [len(look.found()) for look in looks] == [1] * 6 + [0] * 3


@pytest.mark.parametrize("refined_score", [0.3, 0.85])
def test_an_unsure_refinement_is_not_trusted(refined_score: float) -> None:
    script = Script({k: faces_of((0, 0, 60, 60)) for k in range(9)}, refined_score)
    search(script, film(9))
    assert sorted(set(script.searched)) == list(range(9))


def test_an_unsure_face_without_a_sure_one_is_searched_in_every_frame() -> None:
    script = Script({k: faces_of((0, 0, 60, 60), score=0.75) for k in range(9)})
    looks = search(script, film(9))
    assert [len(look.found()) for look in looks] == [1] * 9


def test_every_frame_is_searched_where_the_user_says_so() -> None:
    script = Script({})
    search(script, film(9), detect_every_seconds=0)
    assert sorted(script.searched) == list(range(9))


@pytest.mark.parametrize("batch_frames", [1, 3, 32])
def test_batches_change_neither_the_keyframes_nor_the_faces(batch_frames: int) -> None:
    boxes = {k: faces_of((3 * k, 0, 3 * k + 60, 60)) for k in range(20) if k not in (6, 7, 13)}
    usual, other = Script(boxes), Script(boxes)
    ours = search(usual, film(20, cut_at=9))
    theirs = search(other, film(20, cut_at=9), batch_frames=batch_frames)
    assert sorted(usual.searched) == sorted(other.searched)
    assert [a.frame.time_s for a in ours] == [b.frame.time_s for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.found().boxes, b.found().boxes)


def test_a_change_of_frame_size_is_a_cut() -> None:
    def sized(k: int, width: int) -> TimedFrame:
        picture = np.full((90, width, 3), 60, np.uint8)
        return TimedFrame(k / 4, width, 90, lambda w, h: picture)

    looks = search(Script({}), [sized(k, 160 if k < 3 else 120) for k in range(6)])
    assert [look.cut for look in looks] == [k == 3 for k in range(6)]


def numbered(picture: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    """With its number where any place of it that is searched begins."""
    for part in range(8):
        picture[round(part * 90 / 8), ::20] = k
    return picture


ROOM = cv2.resize(np.random.default_rng(1).integers(0, 80, (6, 10, 3), np.uint8), (160, 90))


def patched(k: int, spans: dict[int, tuple[slice, slice]]) -> TimedFrame:
    picture = np.asarray(ROOM, np.uint8).copy()
    if k in spans:
        picture[spans[k]] = (180, 150, 140)
    numbered(picture, k)
    return TimedFrame(k / 4, 160, 90, lambda width, height: picture)


FACE_SIZED = (slice(40, 80), slice(100, 140))


SMALL = {"min_face": 12}


@pytest.mark.parametrize("known", [0, 1])
def test_what_shows_between_two_keyframes_alone_is_searched_for_where_it_shows(known: int) -> None:
    there = faces_of((86, 62, 104, 84)) if known else faces_of()
    # The place begins at (80, 34): a new face, the one that may be known, and one that its edge cuts.
    more = faces_of((30, 16, 50, 36), (6, 27, 24, 51), (-2, 2, 15, 22))
    script = Script(dict.fromkeys((0, 4, 8), there) | {6: more})
    spans = {6: (slice(50, 70), slice(110, 130))}
    looks = search(script, [patched(k, spans) for k in range(9)], **SMALL)
    assert sorted(script.searched) == [0, 4, 6, 8]
    assert script.sizes[6] == (56, 80), "pixels: not the whole frame of 90 x 160"
    found = looks[6].found().boxes.tolist()
    assert [110, 50, 130, 70] in found
    assert len(found) == 2, "the known one once"


@pytest.mark.parametrize(("width", "height"), [(2, 300), (500, 1), (1, 1), (16, 1920)])
def test_a_picture_of_one_line_of_cells_is_searched(width: int, height: int) -> None:
    def flicker(k: int) -> TimedFrame:
        noise = np.random.default_rng(k).integers(0, 255, (height, width, 3), np.uint8)
        return TimedFrame(k / 4, width, height, lambda w, h: noise)

    looks = search(Script({}), [flicker(k) for k in range(9)], min_face=40)
    assert len(looks) == 9


def test_a_frame_that_shows_something_else_nearly_everywhere_is_searched_whole() -> None:
    script = Script({})
    search(script, [patched(k, {6: (slice(5, 85), slice(5, 155))}) for k in range(9)], **SMALL)
    assert script.sizes[6] == (90, 160)


def test_what_moves_about_a_known_face_or_is_too_small_for_one_is_not() -> None:
    script = Script({k: faces_of((100, 40, 140, 80)) for k in range(9)})
    spans = {6: FACE_SIZED, 2: (slice(40, 50), slice(10, 20))}
    search(script, [patched(k, spans) for k in range(9)])
    assert sorted(script.searched) == [0, 4, 8]


@pytest.mark.parametrize("step", [1, 6])
def test_a_camera_that_moves_shows_nothing_new(step: int) -> None:
    rng = np.random.default_rng(0)
    wide = cv2.resize(rng.integers(0, 255, (8, 20, 3), np.uint8), (240, 90))

    def panned(k: int) -> TimedFrame:
        picture = np.ascontiguousarray(wide[:, step * k : step * k + 160])
        picture[0, 0] = k
        return TimedFrame(k / 4, 160, 90, lambda width, height: picture)

    script = Script({})
    search(script, [panned(k) for k in range(9)])
    assert sorted(script.searched) == [0, 4, 8]


def looked_at(path: Path, every: float) -> list[Look]:
    config = FacesConfig(detect_every_seconds=every)
    frames = sampled_frames(str(path), DecodeConfig(), 0.0, math.inf, Ending())
    return list(FaceSearch(make_detector(config), config)(frames))


def test_following_agrees_with_full_detection_on_real_clips(clips) -> None:
    found, wanted, overlaps = 0, 0, []
    for path in sorted(p for p in clips.iterdir() if p.suffix in (".mp4", ".mov")):
        for full, followed in zip(looked_at(path, 0), looked_at(path, 1.0), strict=True):
            iou = pairwise_iou(full.found().boxes, followed.found().boxes)
            best = iou.max(1, initial=0.0)
            wanted += len(best)
            found += int((best >= 0.4).sum())
            overlaps += best[best >= 0.4].tolist()
    assert wanted > 100
    assert found >= 0.99 * wanted
    assert np.mean(overlaps) >= 0.85
