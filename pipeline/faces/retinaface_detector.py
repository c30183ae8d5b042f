"""RetinaFace as a detector: published weights in, detections out, both conventions faithfully."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.faces.detector import Detections, Frame, non_maximum_suppression
from pipeline.faces.retinaface import (
    Preprocess,
    RetinaFace,
    backbone_of,
    decode,
    preprocessed,
    priors,
    published_state,
)
from pipeline.faces.weights import checkpoint_file
from pipeline.models.loading import fill

NMS_THRESHOLD = 0.4
_BEFORE_NMS, _AFTER_NMS = 5000, 750  # biubug6's limits; retinaface-pytorch has none


class RetinaFaceDetector:
    """Runs a published checkpoint over batches of frames of one size, at the size they come in."""

    feature_dim = 0

    def __init__(
        self, weights: Path, preprocess: Preprocess, min_score: float, device: str = "cpu"
    ) -> None:
        self.preprocess = preprocess
        self.min_score = min_score
        self.device = torch.device(device)
        state = read_checkpoint(weights)
        network = RetinaFace(backbone_of(state))
        # Old files lack the batch counters, which inference never reads; nothing else may miss.
        counters = {
            k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")
        }
        fill(network, counters | state)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, frames: list[Frame]) -> list[Detections]:
        if not frames:
            return []
        height, width = frames[0].shape[:2]
        images = preprocessed(np.stack(frames), self.preprocess).to(self.device)
        heads = self.network(images.contiguous(memory_format=torch.channels_last))
        anchors = torch.from_numpy(priors(height, width)).to(self.device)
        boxes, points, scores = (part.cpu().numpy() for part in decode(heads, anchors))
        return [
            selected(
                boxes[k], points[k], scores[k], (width, height), self.min_score, self.preprocess
            )
            for k in range(len(frames))
        ]


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """A published state dict (.pth, .pt, or the release's .zip); no code in it is ever run."""
    try:
        loaded = torch.load(checkpoint_file(path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"faces.weights: {path} is not a checkpoint of tensors: {line}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"faces.weights: {path} holds no state dict")
    return published_state(loaded)


def selected(
    boxes: NDArray[np.float32],
    points: NDArray[np.float32],
    scores: NDArray[np.float32],
    size: tuple[int, int],
    min_score: float,
    convention: Preprocess,
) -> Detections:
    """Decoded priors of one frame (fractions) -> detections in pixels of `size` (width, height).

    boxes (P, 4), points (P, 5, 2), scores (P,). biubug6 counts a box's sides one pixel longer in its
    overlaps and keeps 750 of the best 5000; retinaface-pytorch drops a box that starts off the frame.
    """
    scale = np.array(size, np.float32)
    chosen = np.flatnonzero(scores > min_score)
    border = 0.0
    if convention == "biubug6":
        border = 1.0
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")[:_BEFORE_NMS]]
    in_pixels = boxes[chosen] * np.tile(scale, 2)
    kept = non_maximum_suppression(in_pixels, scores[chosen], NMS_THRESHOLD, border=border)
    on_frame = (in_pixels[kept, :2] < scale - 1).all(1)
    kept = kept[:_AFTER_NMS] if convention == "biubug6" else kept[on_frame]
    final = chosen[kept]
    none = np.zeros((len(final), 0), np.float32)
    return Detections(in_pixels[kept], scores[final], points[final] * scale, none)


def resized_to(picture: Frame, longest: int) -> Frame:
    """retinaface-pytorch's resize: the longest side becomes `longest`, up or down, bilinear."""
    height, width = picture.shape[:2]
    factor = longest / max(height, width)
    if factor == 1:
        return picture
    size = (round(width * factor), round(height * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)
