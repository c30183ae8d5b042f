"""A labelled picture as a window of one frame, cut as the face stage cuts frames of a video."""

from __future__ import annotations

import numpy as np

from pipeline.annotators.base import WindowInput
from pipeline.faces.align import CropSpec, crop_matrix, cut, transform_points
from pipeline.faces.detector import Frame
from pipeline.faces.mtcnn import Mtcnn
from pipeline.faces.stage import encode_crop
from pipeline.faces.still import find_still_face


def still_window(picture: Frame, mtcnn: Mtcnn, spec: CropSpec) -> WindowInput:
    """picture: (H, W, 3) uint8 RGB that shows one face."""
    face = find_still_face(picture, mtcnn)
    matrix = crop_matrix(face.boxes[0], face.landmarks[0], spec)
    return WindowInput(
        crops=[encode_crop(cut(picture, matrix, spec.size), "png")],
        landmarks=(transform_points(face.landmarks, matrix) + np.float32(0.5))
        / np.float32(spec.size),
        features=face.features,
        attributes={},
    )
