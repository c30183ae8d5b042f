"""RetinaFace's cases: every tensor is made from its key, so a case needs no weights file."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import Detections, pairwise_iou
from emolake.pipeline.faces.retinaface import RetinaFace, decode, preprocessed, priors
from emolake.pipeline.faces.retinaface_detector import resized_to, selected
from emolake.pipeline.models.golden.cases import (
    TOLERANCE,
    StageCheck,
    read_json,
    relative_difference,
)
from emolake.pipeline.storage.weights import fill

_PIXELS = 1e-2


@torch.inference_mode()
def verify_retinaface(folder: Path, config: dict[str, Any]) -> list[StageCheck]:
    """Network input, heads and decoded values relative; final boxes and points in pixels; the share
    of detections that one side has and the other has not."""
    backbone = str(config["family"]).removeprefix("retinaface-")
    network = RetinaFace("resnet50" if backbone == "resnet50" else "mobilenet0.25")
    keys: dict[str, list[int]] = read_json(folder / "keys.json")
    fill(network, {k: _made(k, shape, config) for k, shape in keys.items()})
    network.eval()
    worst: dict[str, float] = {}
    for told in config["images"]:
        try:
            case = dict(np.load(folder / told["file"], allow_pickle=False))
        except OSError:
            raise UserError(
                f"{folder / told['file']} cannot be read; the case is not complete"
            ) from None
        for stage, difference in _compared(network, case, told, config["preprocess"]).items():
            worst[stage] = max(worst.get(stage, 0.0), difference)
    limits = {"boxes_px": _PIXELS, "points_px": _PIXELS, "kept": 0.0}
    return [StageCheck(s, d, limits.get(s, TOLERANCE)) for s, d in worst.items()]


def _compared(
    network: RetinaFace, case: dict[str, NDArray[Any]], told: dict[str, Any], convention: Any
) -> dict[str, float]:
    picture = case["image_bgr"][..., ::-1].copy() if "image_bgr" in case else case["image"]
    height = picture.shape[0]
    resized = resized_to(picture, told["max_size"]) if "max_size" in told else picture
    scale = height / resized.shape[0]
    pixels = preprocessed(resized[None], convention)
    heads = network(torch.from_numpy(case["input"])[None])
    anchors = priors(*resized.shape[:2])
    boxes, points, scores = decode(heads, torch.from_numpy(anchors))
    side = (resized.shape[1], resized.shape[0])
    found = selected(
        boxes[0].numpy(), points[0].numpy(), scores[0].numpy(), side, told["threshold"], convention
    ).scaled(scale, scale)
    wanted_boxes = case.get("raw_bbox", case["det_bbox"])
    wanted_points = case.get("raw_landmarks", case["det_landmarks"])
    box_gap, point_gap, apart = _matched(found, wanted_boxes, wanted_points)
    return {
        "input": relative_difference(pixels[0], torch.from_numpy(case["input"])),
        "boxes_head": relative_difference(heads.boxes[0], torch.from_numpy(case["loc"])),
        "class_head": relative_difference(heads.logits[0], torch.from_numpy(case["conf"])),
        "points_head": relative_difference(heads.points[0], torch.from_numpy(case["landms"])),
        "priors": relative_difference(torch.from_numpy(anchors), torch.from_numpy(case["priors"])),
        "decoded_boxes": relative_difference(boxes[0], torch.from_numpy(case["boxes"])),
        "decoded_points": relative_difference(
            points[0].flatten(1), torch.from_numpy(case["points"])
        ),
        "boxes_px": box_gap,
        "points_px": point_gap,
        "kept": apart,
    }


def _matched(
    found: Detections, boxes: NDArray[Any], points: NDArray[Any]
) -> tuple[float, float, float]:
    """Detections by best overlap, since nearly equal scores may trade places."""
    iou = pairwise_iou(found.boxes, boxes.astype(np.float32))
    if len(found) != len(boxes) or len(set(iou.argmax(0).tolist())) != len(boxes):
        apart = abs(len(found) - len(boxes)) / max(len(boxes), 1)
        return float("inf"), float("inf"), max(apart, 1 / max(len(boxes), 1))
    order = iou.argmax(0)
    box_gap = float(np.abs(found.boxes[order] - boxes).max())
    point_gap = float(np.abs(found.landmarks[order] - points).max())
    return box_gap, point_gap, 0.0


def _made(key: str, shape: list[int], config: dict[str, Any]) -> Tensor:
    """A tensor from its key: hashed uniform values in -1..1, scaled by what the key is."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    u = _hashed(config["salt"] + key, int(np.prod(shape)))
    if key.endswith("running_var"):
        values = 1 + 0.25 * u
    elif len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        gain = next((g for name, g in config["gains"].items() if key.startswith(name)), 1.0)
        values = u * np.sqrt(6 / fan_in) * gain
    elif key.endswith(".weight"):
        values = (1 + 0.2 * u) * (0.25 if ".bn3." in key else 1.0)
    else:
        values = 0.1 * u
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def _hashed(text: str, count: int) -> NDArray[np.float64]:
    """murmur3's finaliser of a running index and the text's CRC-32 (golden/README of the cases)."""
    mask = np.uint64(0xFFFFFFFF)
    x = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    x = (x + np.uint64(zlib.crc32(text.encode()))) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & mask
    x ^= x >> np.uint64(16)
    return x.astype(np.float64) / 2**31 - 1
