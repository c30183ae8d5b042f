"""Face crops: five-point similarity alignment, and a plain box crop where the points are no guide.

The template is ArcFace's (112 x 112; deepinsight/insightface). The least-squares similarity is the
closed form over complex numbers, equal to Umeyama's (1991) without mirroring.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.video.frame import Frame

ARCFACE_TEMPLATE: NDArray[np.float32] = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    np.float32,
) / np.float32(112)
"""Eye, eye, nose tip, mouth corner, mouth corner in image order; fractions of the crop's side."""

MIRRORED_POINTS = (1, 0, 2, 4, 3)
"""Order of the five points after a horizontal mirror."""

MAX_NOSE_OFFSET = 0.5
"""|nose x - eye centre x| / eye distance beyond which a face is a profile and is not warped."""

MAX_TEMPLATE_RESIDUAL = 8.0 / 112
"""RMS distance of the warped points to the template beyond which they are not trusted."""


@dataclass(frozen=True)
class CropSpec:
    """How a model wants its faces cut: part of the model's config, equal in training and use.

    size: side of the crop in pixels.
    margin: border on each side beyond ArcFace's crop, as a part of that crop's side; may be < 0.
    rise: how far the face stands above its place in ArcFace's crop, in the same unit.
    """

    size: int = 112
    margin: float = 0.0
    rise: float = 0.0

    def template(self) -> NDArray[np.float32]:
        """(5, 2) float32 target points in pixels of the crop."""
        offset = np.array([self.margin, self.margin - self.rise], np.float32)
        return (ARCFACE_TEMPLATE + offset) / (1 + 2 * self.margin) * self.size


def similarity(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """Least-squares rotation, scale and shift from `source` to `target`, both (N, 2): (2, 3)."""
    a = source[:, 0] + 1j * source[:, 1].astype(np.float64)
    b = target[:, 0] + 1j * target[:, 1].astype(np.float64)
    a0, b0 = a - a.mean(), b - b.mean()
    spread = float((np.abs(a0) ** 2).sum())
    z = complex((b0 * a0.conj()).sum() / spread) if spread > 1e-12 else 1.0 + 0j
    shift = b.mean() - z * a.mean()
    return np.array([[z.real, -z.imag, shift.real], [z.imag, z.real, shift.imag]])


def is_frontal(landmarks: NDArray[np.float32]) -> bool:
    """Whether five points (5, 2) describe a face that alignment helps rather than distorts."""
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks
    eyes = (left_eye + right_eye) / 2
    eye_distance = float(np.linalg.norm(right_eye - left_eye))
    if eye_distance < 1e-3 or (left_mouth + right_mouth)[1] / 2 <= eyes[1]:
        return False
    if abs(float(nose[0] - eyes[0])) / eye_distance > MAX_NOSE_OFFSET:
        return False
    matrix = similarity(landmarks, ARCFACE_TEMPLATE)
    residual = landmarks @ matrix[:, :2].T + matrix[:, 2] - ARCFACE_TEMPLATE
    return float(np.sqrt((residual**2).sum(1).mean())) <= MAX_TEMPLATE_RESIDUAL


def box_matrix(box: NDArray[np.float32], spec: CropSpec) -> NDArray[np.float64]:
    """(2, 3) map of a detector's box to the crop, upright, in the place alignment would give it.

    ArcFace's crop is about the MTCNN box made square on its height, its centre 7.5 % of that height
    below the box's (medians over 2,320 faces), so both ways of cutting show a face alike.
    """
    height = max(float(box[3] - box[1]), 1.0)
    arcface_side = 1.05 * height
    centre_x = float(box[0] + box[2]) / 2
    centre_y = float(box[1] + box[3]) / 2 + 0.075 * height + spec.rise * arcface_side
    scale = spec.size / (arcface_side * (1 + 2 * spec.margin))
    return np.array(
        [
            [scale, 0.0, spec.size / 2 - scale * centre_x],
            [0.0, scale, spec.size / 2 - scale * centre_y],
        ]
    )


def crop_matrix(
    box: NDArray[np.float32], landmarks: NDArray[np.float32], spec: CropSpec
) -> NDArray[np.float64]:
    """(2, 3) map from frame pixels to crop pixels: by landmarks, or by the box for a profile."""
    if is_frontal(landmarks):
        return similarity(landmarks, spec.template())
    return box_matrix(box, spec)


def cut(frame: Frame, matrix: NDArray[np.float64], size: int) -> Frame:
    """Warps a frame (H, W, 3) to a crop (size, size, 3); past the edge its border is repeated.

    Shrinking by more than two would alias under bilinear sampling, so the region is first reduced
    by area to at most twice the crop's resolution.
    """
    height, width = frame.shape[:2]
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64)
    linear = np.linalg.inv(matrix[:, :2])
    source = (corners - matrix[:, 2]) @ linear.T
    x1, y1 = np.floor(source.min(0) - 2).astype(int)
    x2, y2 = np.ceil(source.max(0) + 2).astype(int)
    x1, y1 = max(min(x1, width - 1), 0), max(min(y1, height - 1), 0)
    x2, y2 = min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)
    region = frame[y1:y2, x1:x2]
    to_crop = matrix.copy()
    to_crop[:, 2] += matrix[:, :2] @ (x1, y1)
    shrink = 1 / float(np.sqrt(abs(np.linalg.det(matrix[:, :2])))) / 2
    if shrink > 1:
        reduced = (max(round((x2 - x1) / shrink), 1), max(round((y2 - y1) / shrink), 1))
        factor = np.array([(x2 - x1) / reduced[0], (y2 - y1) / reduced[1]])
        region = np.asarray(cv2.resize(region, reduced, interpolation=cv2.INTER_AREA), np.uint8)
        to_crop[:, :2] *= factor
        # A reduced pixel's centre stands (factor - 1) / 2 source pixels past its first pixel's.
        to_crop[:, 2] += matrix[:, :2] @ ((factor - 1) / 2)
    crop = cv2.warpAffine(
        region, to_crop, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return crop.astype(np.uint8, copy=False)


def transform_points(
    points: NDArray[np.float32], matrix: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(..., 2) points through a (2, 3) map."""
    moved: NDArray[np.float32] = (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    return moved
