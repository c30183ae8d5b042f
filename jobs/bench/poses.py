"""Heads turned by known angles, seen as five points: how far what is told of them is off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emolake.pipeline.faces.quality import MEAN_HEAD, head_pose

_SHAPE = 0.06  # standard deviation of a point's place among heads, distances between the eyes
_NOSE = 0.09  # the same of how far the nose stands out
_POINTS = 0.03  # of a detector's points, in the picture
_FAR = (6.0, 20.0)  # of the camera, in the same unit: from a selfie to a stage


def pose_errors(
    yaw: float, rng: np.random.Generator, heads: int, noise: float = _POINTS
) -> NDArray[np.float64]:
    """(3,) mean absolute error of yaw, pitch and roll in degrees over heads of different shape at one yaw,
    with pitch and roll up to 20 degrees, seen in perspective through noisy points."""
    errors = []
    for _ in range(heads):
        truth = np.array([yaw * rng.choice([-1, 1]), *rng.uniform(-20, 20, 2)])
        head = MEAN_HEAD + rng.normal(0, _SHAPE, MEAN_HEAD.shape)
        head[2, 2] += rng.normal(0, _NOSE)
        turned = Rotation.from_euler("zxy", truth[[2, 1, 0]], degrees=True).apply(head)
        distance = rng.uniform(*_FAR)
        seen = turned[:, :2] * distance / (distance - turned[:, 2:])
        points = (seen + rng.normal(0, noise, seen.shape)) * 100
        errors.append(np.abs(head_pose(points.astype(np.float32)) - truth))
    return np.asarray(np.mean(errors, axis=0), np.float64)
