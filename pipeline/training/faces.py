"""Labelled pictures -> faces ready for training: a canvas round each, its landmarks and feature.

A canvas shows half as much again as the model's crop at twice its resolution, so that every
augmentation is one warp of the canvas and no picture is found, aligned and cut more than once.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.faces.align import CropSpec, crop_matrix, cut, transform_points
from pipeline.faces.detector import Frame
from pipeline.faces.mtcnn import Mtcnn
from pipeline.faces.still import find_still_face
from pipeline.labelled import labelled_rows

FIELD = 1.5
"""Side of the canvas' field of view, in crops."""
RESOLUTION = 2
"""Canvas pixels per crop pixel."""


@dataclass(frozen=True)
class LabelledFaces:
    """N faces of a labelled table.

    canvas: (N, S, S, C) uint8, C = 1 for a grayscale model, else 3 (RGB).
    landmarks: (N, 5, 2) float32 in canvas pixels.
    features: (N, D) float32 global face features.
    labels: (N,) int64 index into the label set.
    """

    canvas: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def canvas_side(spec: CropSpec) -> int:
    return round(spec.size * FIELD * RESOLUTION)


def crop_to_canvas(spec: CropSpec) -> NDArray[np.float64]:
    """(2, 3) map from crop pixels to canvas pixels."""
    border = (canvas_side(spec) - spec.size * RESOLUTION) / 2
    return np.array([[RESOLUTION, 0, border], [0, RESOLUTION, border]], np.float64)


def decode_picture(encoded: bytes) -> Frame:
    """(H, W, 3) uint8 RGB; ValueError where the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"not a picture: {error}") from None


def to_grayscale(picture: Frame) -> Frame:
    """RGB (H, W, 3) -> Rec. 601 luma (H, W, 1)."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]


def prepare_faces(
    path: Path, labels: tuple[str, ...], spec: CropSpec, *, grayscale: bool, cache: Path
) -> LabelledFaces:
    """Finds and cuts the face of every picture of a table; kept in `cache` for the next time."""
    key = hashlib.sha256(repr((path.resolve(), path.stat().st_size, spec, grayscale)).encode())
    kept = cache / f"faces-{path.stem}-{key.hexdigest()[:12]}.npz"
    if kept.exists():
        with np.load(kept, allow_pickle=False) as arrays:
            return LabelledFaces(**{name: arrays[name] for name in arrays.files})
    mtcnn = Mtcnn()
    side = canvas_side(spec)
    to_canvas = crop_to_canvas(spec)
    canvas, landmarks, features = [], [], []
    targets: list[int] = []
    for row, target in labelled_rows(path, labels, "image"):
        try:
            picture = decode_picture(row["image"])
        except ValueError as error:
            raise UserError(f"{path}, row {len(targets)}: {error}") from None
        face = find_still_face(picture, mtcnn)
        crop = crop_matrix(face.boxes[0], face.landmarks[0], spec)
        matrix = to_canvas[:, :2] @ crop
        matrix[:, 2] += to_canvas[:, 2]
        cut_out = cut(picture, matrix, side)
        canvas.append(to_grayscale(cut_out) if grayscale else cut_out)
        landmarks.append(transform_points(face.landmarks[0], matrix))
        features.append(face.features[0])
        targets.append(target)
    faces = LabelledFaces(
        np.stack(canvas), np.stack(landmarks), np.stack(features), np.array(targets, np.int64)
    )
    cache.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".partial.npz")
    np.savez(partial, **vars(faces))
    partial.replace(kept)
    return faces
