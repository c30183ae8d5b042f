"""What a face detector is: frames in, boxes with scores and five landmarks out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.video.frame import Frame


@dataclass(frozen=True)
class Detections:
    """Faces of one frame, best score first.

    boxes: (N, 4) float32, x1 y1 x2 y2 in pixels; may reach past the frame's edge.
    scores: (N,) float32 in 0..1.
    landmarks: (N, 5, 2) float32 pixels; eye at the smaller x, eye at the larger x, nose tip,
        mouth corner at the smaller x, mouth corner at the larger x.
    features: (N, D) float32 global face feature of the detector's last stage, D = 0 if it has none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Detections:
        return Detections(
            self.boxes[index], self.scores[index], self.landmarks[index], self.features[index]
        )

    def scaled(self, factor_x: float, factor_y: float) -> Detections:
        """The same faces in a picture resized by these factors."""
        xy = np.array([factor_x, factor_y], np.float32)
        return Detections(
            self.boxes * np.tile(xy, 2), self.scores, self.landmarks * xy, self.features
        )

    def moved(self, dx: float, dy: float) -> Detections:
        """The same faces in a picture of which theirs is a part that begins at (dx, dy)."""
        xy = np.array([dx, dy], np.float32)
        return Detections(
            self.boxes + np.tile(xy, 2), self.scores, self.landmarks + xy, self.features
        )

    def joined(self, other: Detections) -> Detections:
        """The faces of both."""
        if not len(other):
            return self
        if not len(self):
            return other
        return Detections(
            np.concatenate([self.boxes, other.boxes]),
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.landmarks, other.landmarks]),
            np.concatenate([self.features, other.features]),
        ).best_first()

    def best_first(self) -> Detections:
        return self.select(np.argsort(-self.scores, kind="stable"))

    @classmethod
    def none(cls, feature_dim: int = 0) -> Detections:
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, 5, 2), np.float32),
            np.zeros((0, feature_dim), np.float32),
        )


class Detector(Protocol):
    """Finds faces in a batch of frames of one size."""

    feature_dim: int

    def __call__(self, frames: list[Frame]) -> list[Detections]:
        """Searches each frame in full."""
        ...

    def refine(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> Detections:
        """Looks at expected boxes (N, 4) alone; owner (N,) is the frame of each, ascending.

        One face for each box, in their order; its score tells whether it is one.
        """
        ...


def pairwise_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4): (N, M)."""
    return _overlap(a, b)


def _overlap(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    *,
    over_smaller: bool = False,
    border: float = 0.0,
) -> NDArray[np.float32]:
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = _area(np.maximum(bottom_right - top_left + border, 0))
    area_a = _area(a[:, 2:] - a[:, :2] + border)[:, None]
    area_b = _area(b[:, 2:] - b[:, :2] + border)[None, :]
    whole = np.minimum(area_a, area_b) if over_smaller else area_a + area_b - intersection
    return (intersection / np.maximum(whole, 1e-9)).astype(np.float32)


def _area(sides: NDArray[np.float32]) -> NDArray[np.float32]:
    # NumPy's product over an axis of two takes five times as long.
    return sides[..., 0] * sides[..., 1]


def non_maximum_suppression(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    threshold: float,
    *,
    over_smaller: bool = False,
    border: float = 0.0,
) -> NDArray[np.intp]:
    """Greedy suppression: indices of the kept boxes, best score first.

    A box goes when its overlap with a better kept one exceeds `threshold`; overlap is IoU, or
    intersection over the smaller box (MTCNN's "min" rule). `border` is added to every side length:
    1 for code that counts a box's last pixel in.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = boxes[order]
    overlap = _overlap(ranked, ranked, over_smaller=over_smaller, border=border) > threshold
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~overlap[i, i + 1 :]
    return order[alive]
