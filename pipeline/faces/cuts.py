"""Shot changes between sampled frames: hard cuts and dissolves, but no flashes; and cuts within a frame.

Two shots differ in colours and in where edges stand. Light that changes (a flash, a lamp) moves colours
alone, and a camera or people that move displace edges and keep colours, so a cut has to show in both. In a
dissolve each frame is a mixture of the frames at its two ends, which no movement is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.video.frame import Frame

_BINS = 8
_EACH = np.eye(_BINS, dtype=np.float32)
_BLUR = 0.5 * _EACH + 0.25 * (_EACH[[*range(1, _BINS), _BINS - 1]] + _EACH[[0, *range(_BINS - 1)]])
"""Half of each bin's count and a quarter of both its neighbours', at the ends of its own: (8, 8)."""
_SMALL = (96, 54)
_SAME_EDGES = 0.35  # correlation of two frames' edges from which on they show one place
_SAME_PLACE = 0.6  # the same once the camera's movement is undone
_MOST_SHIFT = 0.6  # of the picture, that a movement between two frames is looked for
_MIXED = 0.8  # part of a frame's edges that a mixture of two others has to explain
_ONE_STEP = 0.75  # of the way between two shots; more at once is a hard cut's
_ONE_LINE = 0.99  # correlation of two frames' edges, or its reverse
_DIMMED = 0.5  # of the strength that a shot's edges had
_STEPS = 7  # frames back to a dissolve's beginning, at most
_HEAD, _ABOUT = (
    0.4,
    0.9,
)  # of a face on each side: where a head ends, and what is looked at about it
_OTHER_PLACE = (
    0.5  # correlation of a place with itself a frame before, below which it shows another
)
_SAME_STILL = 0.9  # the same of the frames before that, above which nothing much was moving there
_GREY_LEVELS = 8
_REST = 0.3  # of the frame, beside that place, that goes on as it was
_BLANK = 0.3  # edge strength, grey levels a pixel, below which a frame shows nothing


@dataclass(frozen=True)
class _Seen:
    """A frame's luma (54, 96), its colours, (512,) that sum to one, and its edges, (2 * 54 * 96,) of
    length one, or 0 where it shows nothing."""

    grey: NDArray[np.float32]
    colours: NDArray[np.float32]
    edges: NDArray[np.float32]
    shows: bool
    strength: float


class ReplacedPlaces:
    """Says where in a frame another picture has taken the place of one, while the rest of it goes on: a half
    of a split screen, a screen on a wall. What lies about a head tells, above and below its middle: whoever
    moves or turns, light and graphics leave most of it as it was. Where nothing shows there, as before a
    plain wall, nothing is told."""

    def __init__(self) -> None:
        self._last: deque[NDArray[np.int16]] = deque(maxlen=2)

    def __call__(
        self, cells: NDArray[np.int16], boxes: NDArray[np.float32], *, cut: bool
    ) -> NDArray[np.bool_]:
        """cells: (h, w, 3), the frame by mean colours; boxes: (N, 4) in cells -> (N,), whether what is about
        each is another picture than before; nowhere just after a cut."""
        if cut or (self._last and self._last[-1].shape != cells.shape):
            self._last.clear()
        replaced = np.zeros(len(boxes), bool)
        if len(self._last) == 2:
            replaced[:] = [self._is_other(cells, box) for box in boxes]
        self._last.append(cells)
        return replaced

    def _is_other(self, cells: NDArray[np.int16], box: NDArray[np.float32]) -> bool:
        older, old = self._last
        head, place = (_about(box, part, cells.shape) for part in (_HEAD, _ABOUT))
        ring = np.zeros(cells.shape[:2], bool)
        ring[place] = True
        ring[head] = False
        middle = int(max(box[[1, 3]].mean(), 0))
        for half in (slice(None, middle), slice(middle, None)):
            if _alike(old[half][ring[half]], cells[half][ring[half]]) >= _OTHER_PLACE:
                return False
        if _alike(older[ring], old[ring]) <= _SAME_STILL:
            return False
        goes_on = np.abs(cells - old).max(2) <= _GREY_LEVELS
        goes_on[place] = False
        return bool(goes_on.mean() >= _REST)


def _about(box: NDArray[np.float32], part: float, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A box made larger on each side by a part of itself, within a picture."""
    side = np.maximum(box[2:] - box[:2], 0) * part
    left, top = np.clip(box[:2] - side, 0, (shape[1], shape[0])).astype(int)
    right, bottom = np.ceil(np.clip(box[2:] + side, 0, (shape[1], shape[0]))).astype(int)
    return slice(top, bottom), slice(left, right)


def _alike(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
    """Correlation of the same cells (N, 3) of two pictures, each colour about its own mean; 1 where either
    shows nothing."""
    if not len(one):
        return 1.0
    a, b = (part - part.mean(0, dtype=np.float32) for part in (one, other))
    if min(a.std(), b.std()) < _GREY_LEVELS:
        return 1.0
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


class CutDetector:
    """Says of each frame whether a new shot begins with it.

    threshold: half the L1 distance of two frames' colour histograms from which on they can be of two
    shots; 0 the same colours, 1 no colour in common.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._shot: deque[_Seen] = deque(maxlen=_STEPS + 1)
        self._bright: _Seen | None = None
        """The shot's last frame before it dimmed, and the weakest since."""
        self._weakest = 0.0

    def __call__(self, frame: Frame) -> bool:
        """frame: (H, W, 3) uint8 RGB, small ones serve; the first frame is no cut. One that shows nothing
        (a flash that is all white) ends no shot that shows something: what follows it tells."""
        small = np.asarray(cv2.resize(frame, _SMALL, interpolation=cv2.INTER_LINEAR), np.uint8)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges = _edges(grey)
        strength = float(np.linalg.norm(edges))
        shows = strength >= _BLANK * np.sqrt(edges.size)
        seen = _Seen(
            grey,
            _histogram(small),
            edges / np.float32(strength if shows else np.inf),
            shows,
            strength,
        )
        last = self._shot[-1] if self._shot else None
        if self._rises_elsewhere(seen):
            self._shot.clear()
            self._shot.append(seen)
            return True
        if last is not None and last.shows and not shows:
            return False
        if last is not None and last.shows:
            cut = self._jumped(last, seen) or self._dissolved(seen)
        else:
            cut = last is not None and self._differs(last, seen)
        if cut or (last is not None and last.shows != shows):
            self._shot.clear()
        self._shot.append(seen)
        return cut

    def _rises_elsewhere(self, seen: _Seen) -> bool:
        """Whether the light comes back, after a dip to black or white, on another place: edges alone tell,
        since all that is dim has the same colours."""
        bright, dip = self._bright, self._weakest
        if bright is None or seen.strength >= bright.strength * _DIMMED <= dip:
            self._bright, self._weakest = (seen if seen.shows else bright), seen.strength
            return False
        self._weakest = min(dip, seen.strength)
        rises = seen.shows and dip < bright.strength * _DIMMED and seen.strength > 1.2 * dip
        if not rises:
            return False
        elsewhere = (
            float(bright.edges @ seen.edges) < _SAME_EDGES and _moved(bright, seen) < _SAME_PLACE
        )
        if elsewhere or seen.strength >= bright.strength * _DIMMED:
            self._bright, self._weakest = seen, seen.strength
        return elsewhere

    def _differs(self, before: _Seen, after: _Seen) -> bool:
        far = float(np.abs(before.colours - after.colours).sum()) / 2 > self.threshold
        return far and float(before.edges @ after.edges) < _SAME_EDGES

    def _jumped(self, before: _Seen, after: _Seen) -> bool:
        return self._differs(before, after) and _moved(before, after) < _SAME_PLACE

    def _dissolved(self, last: _Seen) -> bool:
        """Whether all frames since an earlier one lead from it to this one as a dissolve does."""
        shot = list(self._shot)
        return any(
            self._differs(shot[k], last) and _leads(shot[k], shot[k + 1 :], last)
            for k in range(len(shot) - 1)
        )


def _leads(first: _Seen, between: list[_Seen], last: _Seen) -> bool:
    """Each frame in between is a mixture of the ends, and ever less of the first one."""
    if abs(float(first.edges @ last.edges)) > _ONE_LINE:
        return False  # a picture and its negative have no mixture but themselves
    ends = np.stack([first.edges, last.edges])
    middle = np.stack([seen.edges for seen in between])
    mixture = np.linalg.solve(ends @ ends.T, ends @ middle.T)  # (2, N), least squares
    explained = (mixture * (ends @ middle.T)).sum(0)
    part = mixture[0] / np.maximum(mixture.sum(0), 1e-6)
    steps = -np.diff(part, prepend=1.0, append=0.0)
    return bool(explained.min() >= _MIXED and steps.min() > -0.05 and steps.max() <= _ONE_STEP)


def _moved(before: _Seen, after: _Seen) -> float:
    """Correlation of the edges where two frames overlap once the camera's movement is undone."""
    (x, y), _ = cv2.phaseCorrelate(before.grey, after.grey)
    width, height = _SMALL
    old, new = (seen.edges.reshape(2, height, width) for seen in (before, after))
    best = 0.0
    # The transform is periodic: a shift by more than half the picture shows as one the other way.
    for dx, dy in {(round(x) + turn * width, round(y)) for turn in (-1, 0, 1)}:
        if abs(dx) > _MOST_SHIFT * width or abs(dy) > _MOST_SHIFT * height:
            continue
        a = old[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
        b = new[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        best = max(best, float((a * b).sum()) / max(size, 1e-9))
    return best


def _edges(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, scale=0.125) for dx in (1, 0))
    return np.concatenate([across.ravel(), down.ravel()]).astype(np.float32, copy=False)


def _histogram(small: Frame) -> NDArray[np.float32]:
    # Blurred counts: a small change of light must not move all pixels to the next bin.
    counts = cv2.calcHist([small], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3)
    for _ in range(3):
        counts = (_BLUR @ counts.reshape(_BINS, -1)).reshape([_BINS] * 3).transpose(1, 2, 0)
    return np.asarray(counts / counts.sum(), np.float32).ravel()
