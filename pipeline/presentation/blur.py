"""Faces made unrecognisable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.video.frame import Frame

_CELLS = 5  # across a face
_MARGIN = 0.45  # of a box, on each side: hair and ears tell people apart too
_AROUND_S = 0.6  # before a face was found, and after it was lost

Path = Sequence[tuple[float, float, float, float, float]]
"""time_s, x1, y1, x2, y2 in fractions of the frame, in time order."""


def boxes_at(paths: Iterable[Path], time_s: float) -> list[NDArray[np.float64]]:
    """Where faces are at a time, between what was found too: on a straight way, or, where they were looked
    for more seldom than every `_AROUND_S`, anywhere between."""
    found = []
    for path in paths:
        told = np.asarray(path, np.float64).reshape(-1, 5)
        if not len(told) or not told[0, 0] - _AROUND_S <= time_s <= told[-1, 0] + _AROUND_S:
            continue
        after = int(np.searchsorted(told[:, 0], time_s).clip(0, len(told) - 1))
        near = told[max(after - 1, 0) : after + 1]
        if near[-1, 0] - near[0, 0] > _AROUND_S:
            found.append(np.concatenate([near[:, 1:3].min(0), near[:, 3:5].max(0)]))
        else:
            found.append(np.array([np.interp(time_s, told[:, 0], told[:, k]) for k in range(1, 5)]))
    return found


def all_blurred(picture: Frame) -> Frame:
    """A frame (H, W, 3) as a few blocks of colour: where nobody knows where its faces are."""
    height, width = picture.shape[:2]
    few = cv2.resize(picture, (2 * _CELLS, 2 * _CELLS), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(few, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def blurred(picture: Frame, boxes: Iterable[NDArray[np.float64]]) -> Frame:
    """A copy of a frame (H, W, 3) with an ellipse of a few blocks of colour over each box and its margin."""
    canvas = picture.copy()
    height, width = canvas.shape[:2]
    for x1, y1, x2, y2 in boxes:
        dx, dy = (x2 - x1) * _MARGIN, (y2 - y1) * _MARGIN
        left, right = (int(np.clip(x * width, 0, width)) for x in (x1 - dx, x2 + dx))
        top, bottom = (int(np.clip(y * height, 0, height)) for y in (y1 - dy, y2 + dy))
        if right <= left or bottom <= top:
            continue
        part = canvas[top:bottom, left:right]
        few = cv2.resize(part, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
        coarse = cv2.resize(few, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        mask = np.zeros(part.shape[:2], np.uint8)
        # Of the whole box, of which the picture may show a part.
        middle = (round((x1 + x2) / 2 * width) - left, round((y1 + y2) / 2 * height) - top)
        axes = (
            math.ceil((0.5 + _MARGIN) * (x2 - x1) * width),
            math.ceil((0.5 + _MARGIN) * (y2 - y1) * height),
        )
        cv2.ellipse(mask, middle, axes, 0, 0, 360, 255, -1)
        part[mask > 0] = coarse[mask > 0]
    return canvas
