"""Pictures of faces as films spoil them, each by a stated amount: what `evaluate --corruptions` measures
a model under. Amounts are relative to the picture's short side, so that faces of any size suffer alike."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from emolake.pipeline.video.frame import Frame

BOX_ERROR = 0.1
"""Of `box_error`: how far, in its own sides, a face is taken to be from where it is, and how much larger
or smaller than it is."""

Corruption = Callable[[Frame, np.random.Generator], Frame]


def _jpeg(picture: Frame, _: np.random.Generator) -> Frame:
    data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 20])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1].copy()


def _blur(picture: Frame, _: np.random.Generator) -> Frame:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), min(picture.shape[:2]) / 48), np.uint8)


def _noise(picture: Frame, rng: np.random.Generator) -> Frame:
    grain = rng.normal(0, 0.05 * 255, (*picture.shape[:2], 1))
    return np.asarray(np.clip(np.rint(picture + grain), 0, 255), np.uint8)


def _smaller(factor: int) -> Corruption:
    def corruption(picture: Frame, _: np.random.Generator) -> Frame:
        height, width = picture.shape[:2]
        size = max(width // factor, 1), max(height // factor, 1)
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        back = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(back, np.uint8)

    return corruption


def _contrast(picture: Frame, _: np.random.Generator) -> Frame:
    middle = picture.mean()
    return np.asarray(np.rint(middle + 0.5 * (picture - middle)), np.uint8)


def _turned(picture: Frame, rng: np.random.Generator) -> Frame:
    height, width = picture.shape[:2]
    angle = float(rng.choice([-15.0, 15.0]))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turned = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8)


def _as_it_is(picture: Frame, _: np.random.Generator) -> Frame:
    return picture


CORRUPTIONS: dict[str, Corruption] = {
    "jpeg_20": _jpeg,
    "blur": _blur,
    "noise": _noise,
    "half_size": _smaller(2),
    "quarter_size": _smaller(4),
    "half_contrast": _contrast,
    "turned_15": _turned,
    "box_error": _as_it_is,
}
"""By name; (H, W, 3) uint8 in and out. `box_error` leaves the picture and spoils where its face is said to
be: see `faces.still`."""


def corrupted(picture: Frame, name: str, seed: int) -> Frame:
    """The same for the same seed."""
    return CORRUPTIONS[name](picture, np.random.default_rng(seed))
