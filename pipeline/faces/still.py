"""The face of a picture that is itself a face crop, as labelled image sets hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.faces.align import ARCFACE_TEMPLATE, crop_matrix, cut, transform_points
from emolake.pipeline.faces.detector import Detections
from emolake.pipeline.faces.encoding import decode_crop, encode_crop
from emolake.pipeline.faces.mtcnn import Mtcnn
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.faces.quality import quality_of
from emolake.pipeline.video.frame import Frame

_SIDE = 144  # pixels the picture's short side is brought to: P-Net sees faces from 40 px up
_PAD = 24  # mirrored border, since such crops often cut chin and forehead off
_LEAST_SCORE = 0.5  # O-Net's own opinion under which the picture's middle is taken


def find_still_face(picture: Frame, mtcnn: Mtcnn) -> Detections:
    """Exactly one face: the most central found; else O-Net on the whole picture; else its middle.

    picture: (H, W, 3) uint8 RGB. A face that only the last resort "finds" has score 0 and
    landmarks at the template's place, so that the crop is the picture's middle.
    """
    height, width = picture.shape[:2]
    scale = _SIDE / min(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    enlarged = cv2.resize(picture, size, interpolation=interpolation)
    padded = cv2.copyMakeBorder(enlarged, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_REFLECT_101)
    canvas = np.asarray(padded, np.uint8)
    found = mtcnn([canvas])[0]
    if len(found):
        centre = np.array([canvas.shape[1], canvas.shape[0]], np.float32) / 2
        middle = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        side = (found.boxes[:, 2:] - found.boxes[:, :2]).max(1)
        nearness = side - np.linalg.norm(middle - centre, axis=1)
        face = found.select(np.array([int(nearness.argmax())]))
    else:
        whole = np.array([[_PAD, _PAD, _PAD + size[0], _PAD + size[1]]], np.float32)
        face = mtcnn.refine([canvas], whole, np.zeros(1, np.intp))
        if face.scores[0] < _LEAST_SCORE:
            face = _middle(whole, face.features)
    shifted = Detections(
        face.boxes - np.float32(_PAD), face.scores, face.landmarks - np.float32(_PAD), face.features
    )
    return shifted.scaled(width / size[0], height / size[1])


def _middle(whole: NDArray[np.float32], features: NDArray[np.float32]) -> Detections:
    side = whole[0, 2:] - whole[0, :2]
    # A labelled crop usually shows a little more than ArcFace's: 10 % a side.
    points = whole[0, :2] + side * (0.1 + 0.8 * ARCFACE_TEMPLATE)
    return Detections(whole, np.zeros(1, np.float32), points[None].astype(np.float32), features)


def misplaced(face: Detections, error: float, seed: int) -> Detections:
    """One face, its box and points moved by at most `error` of the box' side each way, and as much
    larger or smaller."""
    draws = np.random.default_rng(seed).uniform(-error, error, 3).astype(np.float32)
    corner, side = face.boxes[0, :2], (face.boxes[0, 2:] - face.boxes[0, :2]).max()
    middle = corner + side / 2

    def moved(points: NDArray[np.float32]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = middle + (points - middle) * (1 + draws[2]) + side * draws[:2]
        return out

    boxes = moved(face.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    return replace(face, boxes=boxes, landmarks=moved(face.landmarks))


def still_window(
    pictures: list[Frame], mtcnn: Mtcnn, needs: Needs, error: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Pictures of one face, T of them in time order, as a window struct of schema.FACES_ROW, cut as the
    face stage cuts frames of a video. They tell no time: the window lasts from 0 to 0. error: by how much
    faces are to be `misplaced`, to measure what that costs."""
    faces = [find_still_face(picture, mtcnn) for picture in pictures]
    if error:
        faces = [misplaced(face, error, seed) for face in faces]
    middle = len(pictures) // 2
    both = list(zip(pictures, faces, strict=True))
    crops: list[dict[str, Any]] = []
    frames = []
    for view in needs.crops:
        shown = [both[middle]] if view.middle_only else both
        cuts = []
        for picture, face in shown:
            matrix = crop_matrix(face.boxes[0], face.landmarks[0], view.spec)
            points = transform_points(face.landmarks[0], matrix) + np.float32(0.5)
            made = encode_crop(cut(picture, matrix, view.spec.size), "png")
            cuts.append((made, (points / np.float32(view.spec.size)).ravel().tolist()))
        crops.append({"pictures": [c for c, _ in cuts], "landmarks": [p for _, p in cuts]})
    for frame_view in needs.frames:
        side = (frame_view.size, frame_view.size)
        seen = [pictures[middle]] if frame_view.middle_only else pictures
        small = [cv2.resize(picture, side, interpolation=cv2.INTER_AREA) for picture in seen]
        frames.append([encode_crop(np.asarray(one, np.uint8), "jpeg") for one in small])
    return {
        "track_id": 0,
        "window": 0,
        "start_s": 0.0,
        "end_s": 0.0,
        "n_interpolated": 0,
        "bbox": {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0},
        "quality": quality_of(
            [face.boxes[0] for face in faces],
            [face.landmarks[0] for face in faces],
            [float(face.scores[0]) for face in faces],
            decode_crop(crops[0]["pictures"][-1]) if crops else None,
        ).row,
        "n_frames": len(pictures),
        "crops": crops,
        "frames": frames,
        "features": [face.features[0].tolist() for face in faces],
    }
