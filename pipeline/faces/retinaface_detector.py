"""RetinaFace as a detector: published weights in, detections out, both conventions faithfully."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.faces.brought import weights_file
from emolake.pipeline.faces.detector import Detections, non_maximum_suppression
from emolake.pipeline.faces.refine import refined
from emolake.pipeline.faces.retinaface import (
    Heads,
    Preprocess,
    RetinaFace,
    backbone_of,
    decode,
    preprocessed,
    priors,
    published_state,
)
from emolake.pipeline.storage.weights import fill
from emolake.pipeline.video.frame import Frame

NMS_THRESHOLD = 0.4
_BEFORE_NMS, _AFTER_NMS = 5000, 750  # biubug6's limits; retinaface-pytorch has none

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class RetinaFaceDetector:
    """Runs a published checkpoint over batches of frames of one size, at the size they come in."""

    feature_dim = 0

    def __init__(
        self,
        weights: Path,
        preprocess: Preprocess,
        min_score: float,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        self.preprocess = preprocess
        self.min_score = min_score
        self.device = torch.device(device)
        self.dtype = _DTYPES[precision]
        state = read_checkpoint(weights)
        network = RetinaFace(backbone_of(state))
        # Old files lack the batch counters, which inference never reads; nothing else may miss.
        counters = {
            k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")
        }
        fill(network, counters | state)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, frames: list[Frame]) -> list[Detections]:
        if not frames:
            return []
        height, width = frames[0].shape[:2]
        boxes, points, scores = self._decoded(np.stack(frames))
        return [
            selected(
                boxes[k], points[k], scores[k], (width, height), self.min_score, self.preprocess
            )
            for k in range(len(frames))
        ]

    def refine(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> Detections:
        return refined(self._every_prior, frames, boxes, owner)

    def _every_prior(self, frames: list[Frame]) -> list[Detections]:
        """The priors of each frame as they are decoded, in pixels; none is left out."""
        height, width = frames[0].shape[:2]
        boxes, points, scores = self._decoded(np.stack(frames))
        none = np.zeros((boxes.shape[1], 0), np.float32)
        return [
            Detections(boxes[k], scores[k], points[k], none).scaled(width, height)
            for k in range(len(frames))
        ]

    @torch.inference_mode()
    def _decoded(
        self, frames: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """(N, H, W, 3) -> boxes (N, P, 4), points (N, P, 5, 2), scores (N, P); fractions."""
        height, width = frames.shape[1:3]
        images = preprocessed(frames, self.preprocess).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            raw = self.network(images)
        heads = Heads(raw.boxes.float(), raw.logits.float(), raw.points.float())
        anchors = torch.from_numpy(priors(height, width)).to(self.device)
        boxes, points, scores = decode(heads, anchors)
        return boxes.cpu().numpy(), points.cpu().numpy(), scores.cpu().numpy()


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """A published state dict (.pth, .pt, or the release's .zip); no code in it is ever run."""
    try:
        loaded = torch.load(weights_file("retinaface", path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        line = in_a_line(error, 200)
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
