"""Heads pasted into pictures by known homographies: scenes whose truth is known exactly.

A head is cut out of a picture once, with a soft oval mask and the box of its face; wherever a homography
puts it, its box there is that of the moved face oval, computed and never detected. Everything is drawn
from one seed, so a scene comes out the same again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.jobs.bench.truth import read_truth, true_box
from emolake.pipeline.corpus.listing import VIDEO_SUFFIXES
from emolake.pipeline.errors import UserError
from emolake.pipeline.video.frame import Frame, TimedFrame

SIZE = (960, 540)

_ASTRONAUT = (179.0, 68.0, 270.0, 178.0)  # her face in skimage's picture, noted by eye
_LEAST_HEAD = 60  # pixels of face width; a smaller harvested face would be a blur when enlarged
_NOISE = 2.0  # standard deviation of a camera's noise, grey levels

Box = NDArray[np.float32]
"""(4,) float32: x1 y1 x2 y2 in pixels."""


@dataclass(frozen=True)
class Head:
    """A head cut out: patch (h, w, 4) uint8 RGB and mask, `face` the face's box in its pixels."""

    patch: Frame
    face: Box

    @classmethod
    def cut_out(cls, picture: Frame, box: Box) -> Head:
        """The oval about hair and chin of the face that `box` holds, forehead to chin."""
        w, h = box[2] - box[0], box[3] - box[1]
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2 - 0.17 * h
        rx, ry = 0.77 * w, 0.82 * h
        left, top = max(int(x - rx), 0), max(int(y - ry), 0)
        cut = picture[top : int(y + ry) + 1, left : int(x + rx) + 1]
        rows, columns = np.mgrid[: cut.shape[0], : cut.shape[1]]
        far = np.hypot((columns + left - x) / rx, (rows + top - y) / ry)
        mask = (np.clip((1 - far) / 0.12, 0, 1) * 255).astype(np.uint8)
        face = (box - np.array([left, top, left, top])).astype(np.float32)
        return cls(np.dstack([cut, mask]), face)

    def varied(self, rng: np.random.Generator) -> Head:
        """The same head mirrored, in other colours and of another shape: what one picture gives."""
        colours = self.patch[..., :3] / 255.0
        colours = colours ** rng.uniform(0.7, 1.5) * rng.uniform(0.75, 1.15, 3)
        patch = np.dstack([np.clip(colours * 255, 0, 255).astype(np.uint8), self.patch[..., 3]])
        face = self.face.copy()
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
            face[[0, 2]] = patch.shape[1] - face[[2, 0]]
        wider = float(rng.uniform(0.9, 1.1))
        width = round(patch.shape[1] * wider)
        face[[0, 2]] *= width / patch.shape[1]
        resized = cv2.resize(np.ascontiguousarray(patch), (width, patch.shape[0]))
        return Head(np.asarray(resized, np.uint8), face)

    def away(self) -> Head:
        """Its back: no face, all in the colour of what surrounds one."""
        blurred = cv2.GaussianBlur(self.patch[..., :3], (0, 0), self.patch.shape[1] / 4)
        return Head(np.dstack([(blurred * 0.5).astype(np.uint8), self.patch[..., 3]]), self.face)

    def half_covered(self, side: str) -> Head:
        """The lower or the left half of the face behind something of one colour."""
        patch = self.patch.copy()
        x1, y1, x2, y2 = self.face.astype(int)
        if side == "lower":
            patch[(y1 + y2) // 2 : y2 + 4, x1 - 4 : x2 + 4, :3] = (96, 140, 170)
        else:
            patch[y1 - 4 : y2 + 4, x1 - 4 : (x1 + x2) // 2, :3] = (150, 90, 60)
        return Head(patch, self.face)

    def pose(
        self, x: float, y: float, width: float, roll: float = 0.0, yaw: float = 0.0
    ) -> NDArray[np.float64]:
        """(3, 3) homography from the patch to a frame: the face's centre at (x, y), `width` pixels
        wide before it is turned; roll in the picture's plane and yaw about its upright axis in
        degrees, seen from five face widths away. A picture that is turned stays flat: of a real
        profile it has the narrowing and not the nose."""
        x1, y1, x2, y2 = self.face.astype(np.float64)
        s, c = math.sin(math.radians(yaw)), math.cos(math.radians(yaw))
        centred = np.array([[1, 0, -(x1 + x2) / 2], [0, 1, -(y1 + y2) / 2], [0, 0, 1]])
        turned = np.array([[c, 0, 0], [0, 1, 0], [s / (5 * (x2 - x1)), 0, 1]])
        k = width / (x2 - x1)
        rs, rc = k * math.sin(math.radians(roll)), k * math.cos(math.radians(roll))
        moved: NDArray[np.float64] = np.array([[rc, -rs, x], [rs, rc, y], [0, 0, 1]])
        return moved @ turned @ centred

    def box(self, matrix: NDArray[np.float64]) -> Box:
        """The upright box about the face's oval, moved by a homography."""
        x, y = oval(self.face, 64)
        moved = matrix @ np.stack([x, y, np.ones_like(x)])
        points = moved[:2] / moved[2]
        return np.concatenate([points.min(1), points.max(1)]).astype(np.float32)

    def paste(self, frame: Frame, matrix: NDArray[np.float64]) -> Box:
        """Draws it into a frame; the box of its face there."""
        patch, height, width = self.patch, *self.patch.shape[:2]
        scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        to_frame = matrix
        if scale < 0.5:  # bilinear sampling alone would alias
            small = (max(round(2 * scale * width), 2), max(round(2 * scale * height), 2))
            fx, fy = width / small[0], height / small[1]
            patch = np.asarray(cv2.resize(patch, small, interpolation=cv2.INTER_AREA), np.uint8)
            to_frame = matrix @ np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2], [0, 0, 1]])
        corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1.0]])
        low, high = (corners[:2] / corners[2]).min(1), (corners[:2] / corners[2]).max(1)
        x1, y1 = np.clip(np.floor(low), 0, None).astype(int)
        x2, y2 = np.clip(np.ceil(high), 0, (frame.shape[1], frame.shape[0])).astype(int)
        if x1 < x2 and y1 < y2:
            shift = np.array([[1, 0, -x1], [0, 1, -y1], [0, 0, 1.0]])
            there = cv2.warpPerspective(patch, shift @ to_frame, (int(x2 - x1), int(y2 - y1)))
            alpha = there[..., 3:] / np.float32(255)
            under = frame[y1:y2, x1:x2]
            frame[y1:y2, x1:x2] = (
                under + alpha * (there[..., :3] - under.astype(np.float32))
            ).round()
        return self.box(matrix)


def oval(box: Box, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of `count` points on the oval that a box holds."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x1, y1, x2, y2 = box.astype(np.float64)
    return (x1 + x2 + (x2 - x1) * np.cos(angle)) / 2, (y1 + y2 + (y2 - y1) * np.sin(angle)) / 2


def heads_of(folder: Path | None, rng: np.random.Generator, count: int = 60) -> list[Head]:
    """`count` heads: of the pictures and videos of a folder, varied where it holds fewer; without one,
    variations of the one portrait that scikit-image ships."""
    if folder is None:
        box = np.array(_ASTRONAUT, np.float32)
        found = [Head.cut_out(_pictures()["astronaut"], box)]
    else:
        found = list(_harvested(folder))
        if not found:
            raise UserError(f"--faces {folder} shows no face {_LEAST_HEAD} pixels wide or more")
    return [
        head if turn == 0 else head.varied(rng)
        for turn in range(math.ceil(count / len(found)))
        for head in found
    ][:count]


def _harvested(folder: Path) -> Iterator[Head]:
    """One head a file, from a video's middle. Boxes are the truth file's where one lies there; others
    are told by MTCNN once, in the plain view that is cut out, so of those a bench can say how a
    detector bears what is done to them and not whether it finds them as they are."""
    from emolake.pipeline.faces.mtcnn import Mtcnn

    detector = Mtcnn(min_face=_LEAST_HEAD)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    truth = read_truth(None, paths[:1]) if paths else {}
    for path in paths:
        people = truth.get(path.name)
        # Where the truth says that nobody shows, nobody is looked for.
        wanted = [None] if people is None else [(p["start_s"] + p["end_s"]) / 2 for p in people]
        for k, time_s in enumerate(wanted):
            picture = _still(path, time_s)
            if picture is None:
                continue
            boxes = (
                [true_box(people[k], time_s)] if people and time_s else detector([picture])[0].boxes
            )
            inside = [b for b in boxes if b[2] - b[0] >= _LEAST_HEAD and b.min() >= 0]
            yield from (Head.cut_out(picture, box) for box in inside)


def _still(path: Path, time_s: float | None) -> Frame | None:
    """A picture, or the frame of a video at a time or in its middle."""
    import av

    from emolake.pipeline.config import DecodeConfig
    from emolake.pipeline.errors import VideoError
    from emolake.pipeline.video.decode import Ending, probe, sampled_frames

    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
        picture = cv2.imread(str(path))
        return None if picture is None else np.asarray(picture[..., ::-1], np.uint8)
    if path.suffix.lstrip(".").lower() not in VIDEO_SUFFIXES:
        return None
    try:
        middle = (probe(str(path)).duration_s or 0.0) / 2 if time_s is None else time_s
        frames = sampled_frames(str(path), DecodeConfig(sample_fps=25), middle, math.inf, Ending())
        first = next(frames, None)
    except (VideoError, av.FFmpegError):
        return None
    return first.rgb() if first else None


@cache
def _pictures() -> dict[str, Frame]:
    """Photographs that scikit-image ships; none but the astronaut's shows a person."""
    try:
        from skimage import data
    except ImportError:
        raise UserError("bench scenes needs scikit-image: pip install 'emolake[bench]'") from None
    names = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "gravel", "grass")
    found = {name: np.asarray(getattr(data, name)()) for name in names}
    return {n: p if p.ndim == 3 else np.dstack([p, p, p]) for n, p in found.items()}


def background(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Frame:
    """(H, W, 3) a part of a photograph without people, mirrored and tinted at random."""
    pictures = [p for name, p in _pictures().items() if name != "astronaut"]
    picture = pictures[rng.integers(len(pictures))]
    height, width = picture.shape[:2]
    part = rng.uniform(0.5, 1.0)
    w = int(min(width, height * size[0] / size[1]) * part)
    h = min(int(w * size[1] / size[0]), height)
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    cut = picture[y : y + h, x : x + w, :3]
    cut = cut[:, :: int(rng.choice([-1, 1]))]
    tinted = np.clip(cut * rng.uniform(0.7, 1.1, 3), 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(tinted, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def camera(frame: Frame, rng: np.random.Generator, gain: float = 1.0, blur: float = 0.0) -> Frame:
    """What a camera makes of a scene: blurred by `blur` pixels, dimmed, with noise."""
    seen = cv2.GaussianBlur(frame, (0, 0), blur) if blur else frame
    noise = rng.standard_normal(frame.shape, np.float32) * np.float32(_NOISE)
    return np.clip(seen * np.float32(gain) + noise, 0, 255).astype(np.uint8)


def timed_frame(time_s: float, picture: Frame) -> TimedFrame:
    def render(width: int, height: int) -> Frame:
        if (width, height) == (picture.shape[1], picture.shape[0]):
            return picture
        return np.asarray(
            cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )

    return TimedFrame(time_s, picture.shape[1], picture.shape[0], render)
