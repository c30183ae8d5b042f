"""Where the faces of each frame are: full detection on keyframes, refinement in between.

Faces move little between two keyframes. Where both show the same faces, their boxes in between are
interpolated and refined on that place alone; where they differ, or a refined face is no good, the frame is
searched in full. Where it shows something as large as a face that neither keyframe shows, it is searched
there. Keyframes follow the clock of the video, and begin and end each shot, so neither batches nor segments
change what is found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from emolake.pipeline.config import FacesConfig
from emolake.pipeline.faces.cuts import CutDetector
from emolake.pipeline.faces.detector import (
    Detections,
    Detector,
    pairwise_iou,
)
from emolake.pipeline.faces.encoding import encode_crop
from emolake.pipeline.faces.mtcnn import Mtcnn
from emolake.pipeline.video.frame import Frame, TimedFrame

_SAME_FACE_IOU = 0.3  # of a face in two keyframes: a second apart it may well have moved
_STAYED_IOU = 0.5  # of a refined box with the predicted one
_TWICE_IOU = 0.7  # of two refined boxes that have come to lie on one face
_CELLS = 5  # across the smallest face, in which pictures are compared
_OTHER = 12  # of 255, in any channel: a cell's mean colour beyond those about its place
_MANY = 0.4  # of a face's cells
_KNOWN_MARGIN = 0.25  # of a box, on each side: what moves there is its owner's
_PARTS = 8  # of a frame's sides, so that places to be searched come in few sizes
_MOST_OF_FRAME = 0.5  # in places of their own; where there are more, it is searched in full
_ONE_FACE = 0.3  # IoU of a face that a place shows with a known one
_MOST_PIXELS_HELD = 64_000_000  # of decoded frames waiting for a keyframe's batch


Place = tuple[slice, slice]
"""Rows and columns of a picture."""


@dataclass
class Look:
    """A sampled frame and its faces, in pixels of the full frame once it is handed out.

    picture: the frame at detection width; cells: it in cells of a part of the smallest face, (h, w, 3)
    int16; cut: whether a shot begins here; faces: None until found.
    """

    frame: TimedFrame
    picture: Frame
    cells: NDArray[np.int16]
    cut: bool
    key: bool
    faces: Detections | None = None
    _full: Frame | None = field(default=None, repr=False)
    _squashed: dict[int, bytes] = field(default_factory=dict, repr=False)

    def full(self) -> Frame:
        """The frame in its own size, rendered once."""
        if self._full is None:
            self._full = self.frame.rgb()
        return self._full

    def squashed(self, size: int) -> bytes:
        """The whole frame at size x size pixels, as JPEG; made once however many faces it shows."""
        if size not in self._squashed:
            small = cv2.resize(self.full(), (size, size), interpolation=cv2.INTER_AREA)
            self._squashed[size] = encode_crop(np.asarray(small, np.uint8), "jpeg")
        return self._squashed[size]

    def found(self) -> Detections:
        assert self.faces is not None
        return self.faces


class FaceSearch:
    """Holds the detector; stateless between videos.

    feature_network: gives its features to the faces of a detector that has none of its own.
    """

    def __init__(
        self, detector: Detector, config: FacesConfig, feature_network: Mtcnn | None = None
    ) -> None:
        self.detector = detector
        self.config = config
        self.feature_network = feature_network

    def __call__(self, frames: Iterable[TimedFrame]) -> Iterator[Look]:
        """The frames of one segment in time order -> their looks, in the same order."""
        waiting: list[Look] = []
        for look in self._looks(frames):
            if look.cut:
                waiting[-1].key = True
            waiting.append(look)
            held = len(waiting) * look.frame.width * look.frame.height
            full = len(waiting) > self.config.batch_frames or held > _MOST_PIXELS_HELD
            if look.key and full:
                yield from self._handed_out(waiting, -1)
                del waiting[:-1]  # the keyframe is also the start of what follows
        if waiting:
            waiting[-1].key = True
            yield from self._handed_out(waiting, len(waiting))

    def _looks(self, frames: Iterable[TimedFrame]) -> Iterator[Look]:
        is_cut = CutDetector(self.config.cut_threshold)
        every = self.config.detect_every_seconds
        slot, shape = -1, None
        for frame in frames:
            picture = frame.rgb(self.config.detect_width)
            here = math.floor(frame.time_s / every + 1e-6) if every else slot + 1
            # A change of the frame's size cannot be tracked across, like a cut.
            cut = is_cut(picture) or picture.shape != (shape or picture.shape)
            cells = _cells(picture, self.config.min_face / _CELLS)
            yield Look(frame, picture, cells, cut, key=cut or here != slot)
            slot, shape = here, picture.shape

    def _handed_out(self, looks: list[Look], end: int) -> Iterator[Look]:
        self._detect([look for look in looks if look.key and look.faces is None])
        self._follow(looks)
        self._detect([look for look in looks if look.faces is None])
        for look in looks[:end]:
            factors = (
                look.frame.width / look.picture.shape[1],
                look.frame.height / look.picture.shape[0],
            )
            yield replace(look, faces=look.found().scaled(*factors))

    def _detect(self, looks: list[Look]) -> None:
        """Full detection; frames of one size go together."""
        for batch in _of_one_size(looks, self.config.batch_frames):
            for look, faces in zip(batch, self.detector([b.picture for b in batch]), strict=True):
                good = faces.select(plausible(faces, self.config.weak_score))
                look.faces = self._described(look.picture, good)

    def _described(self, picture: Frame, faces: Detections) -> Detections:
        if self.feature_network is None or not len(faces):
            return faces
        owner = np.zeros(len(faces), np.intp)
        told = self.feature_network.refine([picture], faces.boxes, owner)
        return replace(faces, features=told.features)

    def _follow(self, looks: list[Look]) -> None:
        """Fills in the frames between keyframes that agree; leaves the others as they are."""
        expected: list[tuple[Look, NDArray[np.float32]]] = []
        shown: list[tuple[Look, Place]] = []
        keys = [i for i, look in enumerate(looks) if look.key]
        for first, last in pairwise(keys):
            between = looks[first + 1 : last]
            if not between:
                continue
            before, after = looks[first].found(), looks[last].found()
            ends = self._same_faces(before, after)
            if ends is None:
                continue
            start_s, end_s = looks[first].frame.time_s, looks[last].frame.time_s
            for look in between:
                part = (look.frame.time_s - start_s) / max(end_s - start_s, 1e-9)
                boxes = ends[0] + np.float32(part) * (ends[1] - ends[0])
                places = _shows_more(look, looks[first], looks[last], boxes)
                if sum(map(_area, places)) > _MOST_OF_FRAME * math.prod(look.picture.shape[:2]):
                    continue
                shown += [(look, place) for place in places]
                if len(boxes):
                    expected.append((look, boxes))
                else:
                    look.faces = before
        for batch in _of_one_size([look for look, _ in expected], self.config.batch_frames):
            chosen = {id(look) for look in batch}
            self._refine([pair for pair in expected if id(pair[0]) in chosen])
        self._search_places([(look, place) for look, place in shown if look.faces is not None])

    def _search_places(self, shown: list[tuple[Look, Place]]) -> None:
        """Adds to what is known of frames the faces that places of them show."""
        by_size: dict[tuple[int, ...], list[tuple[Look, Place]]] = {}
        for look, place in shown:
            by_size.setdefault(look.picture[place].shape, []).append((look, place))
        for of_size in by_size.values():
            for at in range(0, len(of_size), self.config.batch_frames):
                batch = of_size[at : at + self.config.batch_frames]
                pictures = [np.ascontiguousarray(look.picture[place]) for look, place in batch]
                for (look, place), picture, faces in zip(
                    batch, pictures, self.detector(pictures), strict=True
                ):
                    good = faces.select(plausible(faces, self.config.weak_score))
                    there = self._described(picture, good).moved(place[1].start, place[0].start)
                    known = look.found()
                    same = pairwise_iou(there.boxes, known.boxes).max(1, initial=0.0) >= _ONE_FACE
                    look.faces = known.joined(there.select(~same & ~_cut_off(good, place, look)))

    def _same_faces(
        self, before: Detections, after: Detections
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """The boxes (N, 4) of the same N sure faces in two keyframes; None where they differ, or where there
        are unsure ones alone."""
        if not len(before) and not len(after):
            return before.boxes, after.boxes
        first = before.boxes[before.scores >= self.config.min_score]
        last = after.boxes[after.scores >= self.config.min_score]
        if len(first) != len(last) or not len(first):
            return None
        iou = pairwise_iou(first, last)
        rows, columns = linear_sum_assignment(-iou)
        if iou[rows, columns].min() < _SAME_FACE_IOU:
            return None
        return first[rows], last[columns]

    def _refine(self, expected: list[tuple[Look, NDArray[np.float32]]]) -> None:
        boxes = np.concatenate([boxes for _, boxes in expected])
        counts = [len(boxes) for _, boxes in expected]
        owner = np.repeat(np.arange(len(expected)), counts)
        faces = self.detector.refine([look.picture for look, _ in expected], boxes, owner)
        stayed = np.diag(pairwise_iou(faces.boxes, boxes)) >= _STAYED_IOU
        good = plausible(faces, self.config.min_score) & stayed
        for k, (look, _) in enumerate(expected):
            mine = np.flatnonzero(owner == k)
            found = faces.select(mine)
            apart = np.triu(pairwise_iou(found.boxes, found.boxes), 1).max() < _TWICE_IOU
            if good[mine].all() and apart:
                look.faces = self._described(look.picture, found.best_first())


def plausible(faces: Detections, min_score: float) -> NDArray[np.bool_]:
    """(N,) mask of detections that can be faces: score, eyes above mouth, points about the box."""
    boxes, points = faces.boxes, faces.landmarks
    side = boxes[:, 2:] - boxes[:, :2]
    inside = (points - boxes[:, None, :2]) / np.maximum(side[:, None], 1e-6)
    within = ((inside > -0.25) & (inside < 1.25)).all((1, 2))
    upright = points[:, :2, 1].mean(1) < points[:, 3:, 1].mean(1)
    mask: NDArray[np.bool_] = (faces.scores >= min_score) & within & upright
    return mask


def _cells(picture: Frame, side: float) -> NDArray[np.int16]:
    size = (max(round(length / side), 1) for length in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, tuple(size), interpolation=cv2.INTER_AREA), np.int16)


def _shows_more(look: Look, before: Look, after: Look, known: NDArray[np.float32]) -> list[Place]:
    """Where in a look's picture, by whole parts of its sides, something shows where no face is known (boxes,
    (N, 4)) that could be a face which came after one picture and was gone before the other."""
    cells, pixels = np.array(look.cells.shape[:2]), np.array(look.picture.shape[:2])
    other = _other(look.cells, before.cells)
    for x1, y1, x2, y2 in known * np.tile((cells / pixels)[::-1], 2):
        dx, dy = (x2 - x1) * _KNOWN_MARGIN, (y2 - y1) * _KNOWN_MARGIN
        left, top = max(math.floor(x1 - dx), 0), max(math.floor(y1 - dy), 0)
        other[top : max(math.ceil(y2 + dy), 0), left : max(math.ceil(x2 + dx), 0)] = False
    if not _crowded(other).any():
        return []
    other &= _other(look.cells, after.cells)
    _, _, found, _ = cv2.connectedComponentsWithStats(_crowded(other).astype(np.uint8))
    places = []
    for x, y, width, height, _ in found[1:]:  # the first is what lies about them
        # Of a face, parts may look like what was there before.
        margin = max(_CELLS, max(width, height) / 2)
        low, high = np.array((y, x)) - margin, np.array((y + height, x + width)) + margin
        first = np.clip(np.floor(low / cells * _PARTS), 0, _PARTS)
        last = np.clip(np.ceil(high / cells * _PARTS), 0, _PARTS)
        (top, left), (bottom, right) = (
            np.rint(part * pixels / _PARTS).astype(int).tolist() for part in (first, last)
        )
        places.append((slice(top, bottom), slice(left, right)))
    return places


def _crowded(other: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(h, w) mask of cells about which enough are of another picture to be a face."""
    share = cv2.boxFilter(other.astype(np.float32), -1, (_CELLS, _CELLS))
    return np.asarray(share >= _MANY, bool)


def _cut_off(faces: Detections, place: Place, look: Look) -> NDArray[np.bool_]:
    """(N,) faces, in pixels of a place, that its edge cuts where the picture goes on."""
    rows, columns = place
    height, width = look.picture.shape[:2]
    x1, y1, x2, y2 = faces.boxes.T
    return np.asarray(
        ((x1 <= 0) & (columns.start > 0))
        | ((y1 <= 0) & (rows.start > 0))
        | ((x2 >= columns.stop - columns.start) & (columns.stop < width))
        | ((y2 >= rows.stop - rows.start) & (rows.stop < height)),
        bool,
    )


def _area(place: Place) -> int:
    return math.prod(side.stop - side.start for side in place)


def _other(cells: NDArray[np.int16], key: NDArray[np.int16]) -> NDArray[np.bool_]:
    """(h, w) mask of cells whose colour stands nowhere between those about the same place of a keyframe, nor
    where the camera has moved it; one that moves by less than a cell between them shows nothing other."""
    # Light that changes everywhere is nothing that shows.
    key = key + np.median(cells - key, (0, 1)).astype(np.int16)
    other = _unlike(cells, key)
    if other.any() and min(other.shape) > 1:  # of one line OpenCV finds no peak
        (dx, dy), _ = cv2.phaseCorrelate(_grey(key), _grey(cells))
        if max(abs(dx), abs(dy)) >= 0.5:
            height, width = other.shape
            move = np.array([[1, 0, round(dx)], [0, 1, round(dy)]], np.float32)
            moved = cv2.warpAffine(key, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
            other &= _unlike(cells, np.asarray(moved, np.int16))
    return other


def _unlike(cells: NDArray[np.int16], key: NDArray[np.int16]) -> NDArray[np.bool_]:
    about = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(key, about), cv2.dilate(key, about)
    return np.asarray(cv2.inRange(cells, low - _OTHER, high + _OTHER) == 0, bool)


def _grey(cells: NDArray[np.int16]) -> NDArray[np.float32]:
    # NumPy's mean over an axis of three takes six times as long.
    red, green, blue = np.moveaxis(cells, 2, 0)
    return (red + green + blue) / np.float32(3)


def _of_one_size(looks: list[Look], most: int) -> Iterator[list[Look]]:
    """Runs of at most `most` looks whose pictures have one size; a video may change its own."""
    start = 0
    for i in range(1, len(looks) + 1):
        if (
            i == len(looks)
            or i - start == most
            or looks[i].picture.shape != looks[start].picture.shape
        ):
            yield looks[start:i]
            start = i
