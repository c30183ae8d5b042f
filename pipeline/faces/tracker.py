"""Detections -> tracks: constant-velocity motion and IoU association (SORT, Bewley et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.faces.detector import Detections, pairwise_iou


@dataclass
class Sighting:
    """One detection of a track. box and landmarks in pixels of the full frame."""

    time_s: float
    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    feature: NDArray[np.float32]
    crop: bytes = b""
    crop_landmarks: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass
class Track:
    """One face in one shot, its sightings in time order. lost_s: when it was known to be gone."""

    sightings: list[Sighting]
    lost_s: float | None = None

    def predicted(self, time_s: float) -> NDArray[np.float32]:
        """The box expected at a time: the last one, moved on at its last speed."""
        last = self.sightings[-1]
        if len(self.sightings) < 2:
            return last.box
        before = self.sightings[-2]
        ahead = (time_s - last.time_s) / max(last.time_s - before.time_s, 1e-6)
        moved: NDArray[np.float32] = last.box + (last.box - before.box) * np.float32(
            min(ahead, 2.0)
        )
        return moved


class Tracker:
    """Feeds on frames in time order; a track never crosses a cut."""

    def __init__(self, *, min_iou: float, max_gap_seconds: float) -> None:
        self.min_iou = min_iou
        self.max_gap_seconds = max_gap_seconds
        self._open: list[Track] = []
        self._done: list[Track] = []

    def update(self, time_s: float, faces: Detections, *, cut: bool) -> list[Sighting]:
        """Takes a frame's faces (full-frame pixels); returns their sightings, one a face."""
        if cut:
            self._close(self._open, time_s)
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
        unmatched = dict(enumerate(sightings))
        if self._open and sightings:
            expected = np.stack([track.predicted(time_s) for track in self._open])
            stayed = np.stack([track.sightings[-1].box for track in self._open])
            iou = np.maximum(pairwise_iou(expected, faces.boxes), pairwise_iou(stayed, faces.boxes))
            for row, column in zip(*linear_sum_assignment(-iou), strict=True):
                if iou[row, column] >= self.min_iou:
                    track = self._open[row]
                    track.sightings.append(unmatched.pop(int(column)))
                    track.lost_s = None
        for track in self._open:
            if track.lost_s is None and track.sightings[-1].time_s < time_s:
                track.lost_s = time_s
        self._open += [Track([sighting]) for sighting in unmatched.values()]
        return sightings

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
