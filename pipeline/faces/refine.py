"""Faces where they are expected, for detectors that are one network over a whole picture."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.faces.detector import Detections, pairwise_iou
from emolake.pipeline.video.frame import Frame

REFINE_SIDE = 128  # pixels; a face is half of it, which the networks' middle levels look for
_EXPECTED_IOU = 0.3


def refined(
    detect: Callable[[list[Frame]], list[Detections]],
    frames: list[Frame],
    boxes: NDArray[np.float32],
    owner: NDArray[np.intp],
    side_px: int = REFINE_SIDE,
) -> Detections:
    """`Detector.refine` by `detect` on a square of twice each box's side, scaled to `side_px` pixels:
    the best detection that overlaps the box is its face, with score 0 where none does."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = np.maximum((boxes[:, 2:] - boxes[:, :2]).max(1), 1.0) * 2
    corner = centre - side[:, None] / 2
    scale = side / side_px
    squares = [
        _square(frames[k], c, float(f), side_px)
        for k, c, f in zip(owner, corner, scale, strict=True)
    ]
    count = len(boxes)
    placed = np.zeros((count, 2, 2), np.float32)
    points = np.zeros((count, 5, 2), np.float32)
    scores = np.zeros(count, np.float32)
    for k, found in enumerate(detect(squares)):
        if not len(found):
            continue
        expected = ((boxes[k].reshape(2, 2) - corner[k]) / scale[k]).reshape(1, 4)
        near = pairwise_iou(expected.astype(np.float32), found.boxes)[0] >= _EXPECTED_IOU
        told = np.where(near, found.scores, 0)
        best = told.argmax()
        scores[k] = told[best]
        placed[k] = found.boxes[best].reshape(2, 2) * scale[k] + corner[k]
        points[k] = found.landmarks[best] * scale[k] + corner[k]
    return Detections(placed.reshape(-1, 4), scores, points, np.zeros((count, 0), np.float32))


def _square(frame: Frame, corner: NDArray[np.float32], scale: float, side_px: int) -> Frame:
    """`side_px` pixels square of a frame, `scale` frame pixels to each; 0 past the edge."""
    matrix = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(frame, matrix, (side_px, side_px), flags=flags), np.uint8)
