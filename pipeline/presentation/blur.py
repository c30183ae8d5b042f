"""Faces made unrecognisable, by the tracks of an output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.video.frame import Frame

_CELLS = 5  # across a face
_MARGIN = 0.45  # of a box, on each side: hair and ears tell people apart too
_AROUND_S = 0.6  # before a face was found, and after it was lost

Path = Sequence[tuple[float, float, float, float, float]]
"""time_s, x1, y1, x2, y2 in fractions of the frame, in time order."""

Hidden = Sequence[Path] | Literal["all"] | None
"""Where faces are, "all" where that is not known of all the video, None where all may be seen."""


def all_told(segments: Sequence[Mapping[str, Any]], tracks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all of a video was analysed and each face that was met is told. segments: its rows of `videos`
    that count; tracks: those of `tracks`."""
    return (
        bool(segments)
        and len(segments) == segments[0]["n_segments"]
        and all(s["state"] != "failed" and not s["n_dropped_tracks"] for s in segments)
        and len(tracks) == sum(s["n_tracks"] for s in segments)
        and all(track["path"] for track in tracks)
    )


def lasting(path: NDArray[np.float64], start_s: float, end_s: float) -> NDArray[np.float64]:
    """A track's path (N, 5), N >= 1, for as long as the track lasts, and before it for as long as from one
    look to the next: whoever is looked for seldom is there longer than seen, came as they go on, and goes on
    as they went."""
    end = max(end_s, path[-1, 0])
    begin = min(start_s, path[0, 0] - (end - path[-1, 0]))
    return np.vstack([_further(path[:2], begin), path, _further(path[:-3:-1], end)])


def _further(ends: NDArray[np.float64], time_s: float) -> NDArray[np.float64]:
    """(5,) the path beyond its end, ends[0], away from the place beside it: all that lies on the way."""
    here, beside = ends[0], ends[-1]
    part = abs(time_s - here[0]) / max(abs(here[0] - beside[0]), 1e-3)
    gone = here[1:] + (here[1:] - beside[1:]) * min(part, 1.0)
    low, high = np.minimum(gone, here[1:]), np.maximum(gone, here[1:])
    return np.array([time_s, *low[:2], *high[2:]])


def hidden(picture: Frame, time_s: float, faces: Hidden) -> Frame:
    """A frame (H, W, 3) with no recognisable face. time_s: the frame's own."""
    if faces == "all":
        return all_blurred(picture)
    return picture if faces is None else blurred(picture, boxes_at(faces, time_s))


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
