"""A labelled picture as a window of one frame, cut as the face stage cuts frames of a video."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.annotators.base import FaceCrops, WindowInput
from pipeline.faces.align import crop_matrix, cut, transform_points
from pipeline.faces.detector import Frame
from pipeline.faces.encoding import encode_crop
from pipeline.faces.mtcnn import Mtcnn
from pipeline.faces.still import find_still_face
from pipeline.needs import CropView, Needs


def still_window(picture: Frame, mtcnn: Mtcnn, needs: Needs) -> WindowInput:
    """picture: (H, W, 3) uint8 RGB that shows one face."""
    face = find_still_face(picture, mtcnn)
    crops: dict[CropView, FaceCrops] = {}
    for view in needs.crops:
        spec = view.spec
        matrix = crop_matrix(face.boxes[0], face.landmarks[0], spec)
        points = (transform_points(face.landmarks, matrix) + np.float32(0.5)) / np.float32(
            spec.size
        )
        crops[view] = FaceCrops([encode_crop(cut(picture, matrix, spec.size), "png")], points)
    frames = {}
    for frame_view in needs.frames:
        small = cv2.resize(picture, (frame_view.size,) * 2, interpolation=cv2.INTER_AREA)
        frames[frame_view] = [encode_crop(np.asarray(small, np.uint8), "jpeg")]
    return WindowInput(crops=crops, features=face.features, frames=frames)
