"""Detections -> tracks: constant-velocity motion and IoU association in passes.

The first two passes are ByteTrack's idea (Zhang et al. 2022, arXiv 2110.06864): sure detections choose
their tracks first; then unsure ones may continue a track that found none, but never begin one. A profile,
a hand before the face or blur lowers a score long before it hides the face. What is sure and still left
over then meets the tracks left over in boxes made larger, as C-BIoU does it (Yang et al. 2023, arXiv
2211.14317): at a few frames a second a face that moves leaves its box between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from emolake.pipeline.faces.detector import Detections, pairwise_iou

_MOST_STEPS_AHEAD = 4.0  # a face that was moving when it was lost has rarely kept on longer
_WIDER = 0.5  # of its width and height, by which a box is made larger on each side in the last pass
_SAME_PLACE = 0.5  # IoU of a face and the one that its picture has replaced
_OTHER_SIZE = 1.2  # times as large or as small as expected, and there it is somebody else's


@dataclass(frozen=True)
class Crop:
    """An encoded face crop; landmarks: (5, 2) float32 in fractions of it."""

    picture: bytes
    landmarks: NDArray[np.float32]


@dataclass
class Sighting:
    """One detection of a track. box and landmarks in pixels of the full frame."""

    time_s: float
    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    feature: NDArray[np.float32]
    crops: list[Crop] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    """What the face stage cut of it: face crops and whole frames, one a view."""


@dataclass(frozen=True)
class BridgedBox:
    """Where a face must have been in a sampled frame in which it was not found: interpolated
    between the sightings on both sides of a gap."""

    time_s: float
    box: NDArray[np.float32]


@dataclass
class Track:
    """One face in one shot, its sightings in time order.

    bridged: interpolated boxes of gaps within the track, in time order; missed: times of the frames
    since the last sighting, which become a gap if the face is seen again.
    """

    sightings: list[Sighting]
    bridged: list[BridgedBox] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)
    embeddings: list[NDArray[np.float64]] = field(default_factory=list)
    looked_s: float | None = None
    """Time of the last embedding."""
    attribute_scores: list[NDArray[np.float32]] = field(default_factory=list)
    judged_s: float = -np.inf
    """Time of the last of those."""
    lost_s: float | None = None
    """When the face was known to be gone."""
    size: tuple[int, int] = (1, 1)
    """Width and height of the frames it stands in: a change of them ends it."""

    def places(self) -> list[Sighting | BridgedBox]:
        """Where it was seen and where it must have been, in time order."""
        return sorted([*self.sightings, *self.bridged], key=lambda place: place.time_s)

    def predicted(self, time_s: float) -> NDArray[np.float32]:
        """The box expected at a time: moved on at the last speed, of the last two's mean size, since a
        detector's boxes breathe."""
        if len(self.sightings) < 2:
            return self.sightings[-1].box
        before, last = self.sightings[-2:]
        steps = (time_s - last.time_s) / max(last.time_s - before.time_s, 1e-6)
        boxes = np.stack([before.box, last.box])
        centres, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).mean(0) / 2
        centre = centres[1] + (centres[1] - centres[0]) * np.float32(min(steps, _MOST_STEPS_AHEAD))
        return np.concatenate([centre - half, centre + half])

    def see(self, sighting: Sighting) -> None:
        """Goes on with a sighting and bridges the gap before it, if there is one."""
        last = self.sightings[-1]
        for time_s in self.missed:
            part = np.float32((time_s - last.time_s) / (sighting.time_s - last.time_s))
            self.bridged.append(BridgedBox(time_s, last.box + part * (sighting.box - last.box)))
        self.missed.clear()
        self.lost_s = None
        self.sightings.append(sighting)


class Tracker:
    """Feeds on frames in time order; a track never crosses a cut.

    min_score: from here on a detection is sure; all detections given are at least unsure.
    """

    def __init__(self, *, min_score: float, min_iou: float, max_gap_seconds: float) -> None:
        self.min_score = min_score
        self.min_iou = min_iou
        self.max_gap_seconds = max_gap_seconds
        self._open: list[Track] = []
        self._done: list[Track] = []

    def update(
        self,
        time_s: float,
        faces: Detections,
        *,
        cut: bool,
        replaced: NDArray[np.bool_] | None = None,
    ) -> list[Track]:
        """Takes a frame's faces (full-frame pixels); returns the tracks that it shows, each with its
        sighting as the last. cut: whether a shot begins with it; replaced: (N,), which of the faces belong
        to a picture that has come into the place of another."""
        if cut:
            self._close(self._open, time_s)
        seen = [track for track in self._open if not track.missed]
        if replaced is not None and replaced.any() and seen:
            were = np.stack([track.sightings[-1].box for track in seen])
            there = pairwise_iou(were, faces.boxes[replaced]).max(1) >= _SAME_PLACE
            self._close([t for t, gone in zip(seen, there, strict=True) if gone], time_s)
        lapsed = [
            t for t in self._open if time_s - t.sightings[-1].time_s > self.max_gap_seconds + 1e-6
        ]
        self._close(lapsed, time_s)
        sightings = [
            Sighting(
                time_s,
                faces.boxes[i],
                float(faces.scores[i]),
                faces.landmarks[i],
                faces.features[i],
            )
            for i in range(len(faces))
        ]
        sure = [s for s in sightings if s.score >= self.min_score]
        unsure = [s for s in sightings if s.score < self.min_score]
        searching, begun = self._associate(self._open, sure, time_s)
        searching, _ = self._associate(searching, unsure, time_s)
        searching, begun = self._associate(searching, begun, time_s, wider=_WIDER)
        for track in searching:
            track.missed.append(time_s)
            if track.lost_s is None:
                track.lost_s = time_s
        self._open += [Track([sighting]) for sighting in begun]
        return [track for track in self._open if not track.missed]

    def _associate(
        self, tracks: list[Track], sightings: list[Sighting], time_s: float, wider: float = 0.0
    ) -> tuple[list[Track], list[Sighting]]:
        """Matches one to one; returns the tracks and the sightings that are left over."""
        if not tracks or not sightings:
            return tracks, sightings
        boxes = _widened([s.box for s in sightings], wider)
        expected = _widened([track.predicted(time_s) for track in tracks], wider)
        stayed = _widened([track.sightings[-1].box for track in tracks], wider)
        iou = np.maximum(pairwise_iou(expected, boxes), pairwise_iou(stayed, boxes))
        if wider:
            was, told = (np.maximum(b[:, 2:] - b[:, :2], 1e-6) for b in (expected, boxes))
            other = np.abs(np.log(told[None] / was[:, None])).max(-1) > np.log(_OTHER_SIZE)
            iou = np.where(other, np.float32(0), iou)
        rows, columns = linear_sum_assignment(-iou)
        matched = iou[rows, columns] >= self.min_iou
        for row, column in zip(rows[matched], columns[matched], strict=True):
            tracks[row].see(sightings[column])
        taken, used = set(rows[matched].tolist()), set(columns[matched].tolist())
        return (
            [track for i, track in enumerate(tracks) if i not in taken],
            [sighting for i, sighting in enumerate(sightings) if i not in used],
        )

    def finish(self) -> list[Track]:
        """All tracks, by start time and then from left to right: an order that repeats."""
        self._done += self._open
        self._open = []
        return sorted(
            self._done, key=lambda t: (t.sightings[0].time_s, *t.sightings[0].box.tolist())
        )

    def _close(self, tracks: list[Track], time_s: float) -> None:
        closing = {id(track) for track in tracks}
        for track in tracks:
            if track.lost_s is None:
                track.lost_s = time_s
            self._done.append(track)
        self._open = [track for track in self._open if id(track) not in closing]


def _widened(boxes: list[NDArray[np.float32]], part: float) -> NDArray[np.float32]:
    """(N, 4) boxes, larger on each side by a part of their width and height."""
    stacked = np.stack(boxes)
    side = (stacked[:, 2:] - stacked[:, :2]) * np.float32(part)
    return np.concatenate([stacked[:, :2] - side, stacked[:, 2:] + side], 1)
