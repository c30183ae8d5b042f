"""How well a window shows its face: what a model's answer may be weighed by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.faces.align import ARCFACE_TEMPLATE
from emolake.pipeline.faces.encoding import to_grayscale
from emolake.pipeline.video.frame import Frame

_DEPTHS = np.array([0.0, 0.0, 0.53, 0.12, 0.12])
"""How far the five points of a head stand before the plane of its eyes, in distances between the eyes: 33
mm for the nose's tip and 8 mm for the mouth's corners at 62 mm from eye to eye. Of one whose nose is longer
a larger yaw is told."""

_EYES = float(ARCFACE_TEMPLATE[1, 0] - ARCFACE_TEMPLATE[0, 0])
MEAN_HEAD = np.column_stack([ARCFACE_TEMPLATE.astype(np.float64) / _EYES, _DEPTHS])
MEAN_HEAD -= MEAN_HEAD.mean(0)
"""(5, 3): the five points in distances between the eyes, about their middle; x right, y down, z towards the
camera."""
_OF_MEAN_HEAD = np.linalg.pinv(MEAN_HEAD)

_REBLUR = 9  # pixels
_SIDE = 96  # pixels: blur is measured on crops of one size


@dataclass(frozen=True)
class Quality:
    """face_px: the shorter side of the face's box in pixels of the source; blur: 0 (sharp) to 1;
    brightness: mean luma, 0 to 1; yaw, pitch, roll: degrees, 0 where the face looks into the camera,
    positive where the nose points to larger x, upwards, and where the head is turned clockwise; score: the
    detector's. blur and brightness are None where no crop was made."""

    face_px: float
    blur: float | None
    brightness: float | None
    yaw: float
    pitch: float
    roll: float
    score: float

    @property
    def row(self) -> dict[str, float | None]:
        """As schema.QUALITY."""
        return asdict(self)


def quality_of(
    boxes: Sequence[NDArray[np.float32]],
    landmarks: Sequence[NDArray[np.float32]],
    scores: Sequence[float],
    crop: Frame | None,
) -> Quality:
    """Of a window of T frames: boxes (4,), landmarks (5, 2) in source pixels; crop: the middle frame's. The
    median over the frames, so that one wrong box does not speak for the window."""
    sides = [float(min(box[2] - box[0], box[3] - box[1])) for box in boxes]
    yaw, pitch, roll = np.median(head_pose(np.stack(landmarks)), axis=0)
    luma = None if crop is None else to_grayscale(crop)[..., 0]
    return Quality(
        face_px=float(np.median(sides)),
        blur=None if luma is None else blur_of(luma),
        brightness=None if luma is None else float(luma.mean() / 255),
        yaw=float(yaw),
        pitch=float(pitch),
        roll=float(roll),
        score=float(np.mean(scores)),
    )


def head_pose(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Yaw, pitch and roll (..., 3) in degrees from five points (..., 5, 2), by scaled orthographic projection
    of a mean head (the POS of DeMenthon and Davis 1995)."""
    points = landmarks - landmarks.mean(-2, keepdims=True, dtype=np.float64)
    affine = np.swapaxes(_OF_MEAN_HEAD @ points, -1, -2)  # (..., 2, 3), least squares
    u, _, v = np.linalg.svd(affine, full_matrices=False)
    axes = u @ v  # the nearest pair of orthogonal ones
    right, down = axes[..., 0, :], axes[..., 1, :]
    ahead = np.cross(right, down)
    roll = np.arctan2(down[..., 0], right[..., 0])
    yaw = np.arctan2(right[..., 2], ahead[..., 2])
    pitch = np.arcsin(np.clip(-down[..., 2], -1, 1))
    return np.degrees(np.stack([yaw, pitch, roll], -1))


def blur_of(luma: NDArray[np.uint8]) -> float:
    """Crete et al. (2007): how little a picture changes when it is blurred once more. luma: (S, S)."""
    picture = cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    told = []
    for kernel, axis in (((_REBLUR, 1), 1), ((1, _REBLUR), 0)):
        before = np.abs(np.diff(picture, axis=axis))
        after = np.abs(np.diff(cv2.blur(picture, kernel), axis=axis))
        whole = float(before.sum())
        lost = float(np.maximum(before - after, 0).sum())
        told.append((whole - lost) / whole if whole > 0 else 1.0)
    return max(told)
