"""SCRFD (Guo et al. 2021, arXiv 2105.04714) from ONNX files as InsightFace publishes them.

A file's outputs are the scores of all levels, then the boxes, then the landmarks, each in strides from
each anchor's centre. How many there are tells the levels, and with them the anchors of a cell.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import Detections, non_maximum_suppression
from emolake.pipeline.faces.refine import REFINE_SIDE, refined
from emolake.pipeline.storage.onnx import opened
from emolake.pipeline.video.frame import Frame

NMS_THRESHOLD = 0.4
STRIDES = (8, 16, 32, 64, 128)
_LEVELS = {9: 3, 15: 5}  # by the number of outputs
_ANCHORS = {3: 2, 5: 1}  # of a cell, by the number of levels
_WIDTHS = (1, 4, 10)  # of an anchor's score, box and landmarks
_WHAT = "faces.detector=scrfd"


class Scrfd:
    """Runs a file over batches of frames of one size, at the size they come in; one that was exported
    for a fixed size sees them as InsightFace shows them: scaled into its upper left corner."""

    feature_dim = 0

    def __init__(self, weights: Path, min_score: float, device: str = "cpu") -> None:
        self.min_score = min_score
        self._session = opened(str(weights), _WHAT, device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(outputs) in (6, 10):
            raise UserError(f"{_WHAT}: {weights} tells no landmarks; take a *_kps or *_bnkps file")
        levels, shape = _LEVELS.get(len(outputs), 0), inputs[0].shape
        last = [out.shape[-1] if out.shape else 0 for out in outputs]
        fits = len(inputs) == 1 and len(shape) == 4 and inputs[0].type == "tensor(float)"
        if not (levels and fits and _may_be(shape[0], 1) and _may_be(shape[1], 3)) or not all(
            map(_may_be, last, np.repeat(_WIDTHS, levels))
        ):
            raise UserError(
                f"{_WHAT}: {weights} is no SCRFD with landmarks, which reads pictures (N, 3, H, W) and "
                f"gives 9 or 15 outputs: it reads {shape} and gives {len(outputs)}"
            )
        self._strides, self._anchors = STRIDES[:levels], _ANCHORS[levels]
        self._input = inputs[0].name
        self._takes_many = not isinstance(shape[0], int)
        height, width = shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self._size: tuple[int, int] | None = (height, width) if fixed else None

    def __call__(self, frames: list[Frame]) -> list[Detections]:
        if not frames:
            return []
        pictures, scale = self._fitted(frames)
        boxes, points, scores = self._decoded(pictures)
        return [
            self._selected(boxes[k] / scale, points[k] / scale, scores[k])
            for k in range(len(frames))
        ]

    def refine(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> Detections:
        side = min(self._size) if self._size else REFINE_SIDE
        return refined(self, frames, boxes, owner, side)

    def _fitted(self, frames: list[Frame]) -> tuple[NDArray[np.uint8], np.float32]:
        """(N, H, W, 3) of a size that the file takes, 0 where no frame is; its pixels to a frame's."""
        height, width = shown = frames[0].shape[:2]
        if self._size is None:
            size = tuple(-(-side // self._strides[-1]) * self._strides[-1] for side in shown)
        else:
            size = self._size
            if height / width > size[0] / size[1]:
                shown = (size[0], max(int(size[0] / (height / width)), 1))
            else:
                shown = (max(int(size[1] * (height / width)), 1), size[1])
        pictures = np.zeros((len(frames), *size, 3), np.uint8)
        for picture, frame in zip(pictures, frames, strict=True):
            picture[: shown[0], : shown[1]] = cv2.resize(frame, (shown[1], shown[0]))
        return pictures, np.float32(shown[0] / height)

    def _decoded(
        self, pictures: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """(N, H, W, 3) -> boxes (N, P, 4), points (N, P, 5, 2) in its pixels, scores (N, P)."""
        count, height, width = pictures.shape[:3]
        given = (pictures.astype(np.float32) - np.float32(127.5)) / np.float32(128)
        given = np.ascontiguousarray(given.transpose(0, 3, 1, 2))
        parts = np.array_split(given, 1 if self._takes_many else count)
        answers = [self._session.run(None, {self._input: part}) for part in parts]
        # Some files keep the pictures of a batch apart, others put their anchors into one row.
        heads = [
            np.concatenate([np.asarray(out).reshape(-1, out.shape[-1]) for out in told]).reshape(
                count, -1, told[0].shape[-1]
            )
            for told in zip(*answers, strict=True)
        ]
        levels = len(self._strides)
        scores, boxes, points = [], [], []
        for k, stride in enumerate(self._strides):
            rows, columns = height // stride, width // stride
            y, x = np.mgrid[:rows, :columns].astype(np.float32) * stride
            centre = np.stack([x, y], -1).reshape(-1, 2).repeat(self._anchors, 0)
            reach = heads[levels + k] * stride
            boxes.append(np.concatenate([centre - reach[..., :2], centre + reach[..., 2:]], -1))
            offsets = heads[2 * levels + k].reshape(count, -1, 5, 2)
            points.append(centre[:, None] + offsets * stride)
            scores.append(heads[k][..., 0])
        return np.concatenate(boxes, 1), np.concatenate(points, 1), np.concatenate(scores, 1)

    def _selected(
        self,
        boxes: NDArray[np.float32],
        points: NDArray[np.float32],
        scores: NDArray[np.float32],
    ) -> Detections:
        """Anchors of one frame, in its pixels -> its faces; sides count one pixel longer in overlaps."""
        sure = np.flatnonzero(scores >= self.min_score)
        kept = sure[non_maximum_suppression(boxes[sure], scores[sure], NMS_THRESHOLD, border=1.0)]
        return Detections(
            boxes[kept], scores[kept], points[kept], np.zeros((len(kept), 0), np.float32)
        )


def _may_be(size: object, wanted: int) -> bool:
    """Whether a file's own word of a size, which it may leave open, admits this one."""
    return size == wanted or not isinstance(size, int)
