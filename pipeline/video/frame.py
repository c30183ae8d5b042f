"""What a decoded picture is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""One picture, (H, W, 3) uint8 RGB."""


@dataclass
class TimedFrame:
    """One sampled frame. time_s: seconds from the video's start; width, height: as it is shown, in square
    pixels; render: picture of a width and height."""

    time_s: float
    width: int
    height: int
    render: Callable[[int, int], Frame]

    def rgb(self, width: int | None = None) -> Frame:
        """(H, W, 3) uint8, upright; scaled to `width` if that is smaller, aspect kept."""
        if width is None or width >= self.width:
            return self.render(self.width, self.height)
        return self.render(width, max(round(self.height * width / self.width), 1))
