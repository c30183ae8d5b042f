"""Cut detection between sampled frames by colour histogram."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.video.frame import Frame

_BINS = 8


class CutDetector:
    """Says of each frame whether a cut lies between it and the frame before."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._last: NDArray[np.float32] | None = None

    def __call__(self, frame: Frame) -> bool:
        """frame: (H, W, 3) uint8 RGB, small ones serve; the first frame is no cut."""
        histogram = _histogram(frame)
        last, self._last = self._last, histogram
        if last is None:
            return False
        # Half the L1 distance of two distributions: 0 the same colours, 1 no colour in common.
        return float(np.abs(histogram - last).sum()) / 2 > self.threshold


def _histogram(frame: Frame) -> NDArray[np.float32]:
    small = cv2.resize(frame, (96, 54), interpolation=cv2.INTER_LINEAR)
    # Blurred counts: a small change of light must not move all pixels to the next bin.
    counts = cv2.calcHist([small], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3)
    for axis in range(3):
        padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        ahead, behind = (np.take(padded, range(s, s + _BINS), axis) for s in (2, 0))
        counts = 0.5 * counts + 0.25 * (ahead + behind)
    return np.asarray(counts / counts.sum(), np.float32)
