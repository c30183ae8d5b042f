"""MTCNN (Zhang et al. 2016, arXiv 1604.02878) in torch with the weights of the `mtcnn` wheel.

The wheel's own inference needs TensorFlow, so only its weight files are read. Keras stores
convolutions as (H, W, in, out), dense layers as (in, out), and its R-Net and O-Net transpose the
feature map to (W, H, C) before flattening.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from functools import cache, reduce
from pathlib import Path
from typing import Any, TypeVar

import cv2
import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import Detections, non_maximum_suppression
from emolake.pipeline.video.frame import Frame

PYRAMID_FACTOR = 0.709
CELL = 12  # side of P-Net's receptive field, pixels
STRIDE = 2  # P-Net's output stride, pixels
PNET_THRESHOLD, RNET_THRESHOLD, ONET_THRESHOLD = 0.6, 0.7, 0.7
NMS_WITHIN_SCALE = 0.5
NMS_BETWEEN_STAGES = 0.7
FEATURE_DIM = 256  # O-Net's hidden layer

_GRAY = 127  # what the nets see as nothing
_MOST_PATCHES = 512  # per call; also keeps OpenCV's maps within 16-bit sizes

_Net = TypeVar("_Net", bound=nn.Module)


class _PReLU(nn.PReLU):
    """By rows of a batch that lies channels last: torch goes there channel by channel of each pixel, which
    for P-Net's ten takes eleven times as long."""

    def forward(self, hidden: Tensor) -> Tensor:
        count, channels, height, width = hidden.shape
        rows = hidden.permute(0, 2, 3, 1).reshape(count * height, width * channels)
        bent = torch.prelu(rows, self.weight.expand(width, -1).reshape(-1))
        return bent.view(count, height, width, channels).permute(0, 3, 1, 2)


class _MaxPool(nn.Module):
    """As nn.MaxPool2d of stride 2, by maxima of whole rows and then of columns: for the few channels of these
    nets torch's own takes two to six times as long.

    overhangs: a last window may reach over the edge (torch's ceil_mode).
    """

    def __init__(self, kernel: int, *, overhangs: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.overhangs = overhangs

    def forward(self, hidden: Tensor) -> Tensor:
        pixels = hidden.permute(0, 2, 3, 1)
        return self._pooled(self._pooled(pixels, 1), 2).permute(0, 3, 1, 2)

    def _pooled(self, pixels: Tensor, axis: int) -> Tensor:
        count = (pixels.shape[axis] - self.kernel + self.overhangs) // 2 + 1
        before = (slice(None),) * axis
        parts = [pixels[(*before, slice(k, k + 2 * count, 2))] for k in range(self.kernel)]
        whole = parts[-1].shape[axis]  # windows that lie within
        pooled = reduce(torch.maximum, [part.narrow(axis, 0, whole) for part in parts])
        if whole == count:
            return pooled
        edge = reduce(torch.maximum, [part.narrow(axis, whole, 1) for part in parts[:-1]])
        return torch.cat([pooled, edge], axis)


def _stage(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, kernel), _PReLU(channels_out)]


class _PNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_stage(3, 10, 3),
            _MaxPool(2, overhangs=True),
            *_stage(10, 16, 3),
            *_stage(16, 32, 3),
        )
        self.box = nn.Conv2d(32, 4, 1)
        self.face = nn.Conv2d(32, 2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(images)
        return self.box(hidden), self.face(hidden).softmax(1)[:, 1]


class _RNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_stage(3, 28, 3),
            _MaxPool(3, overhangs=True),
            *_stage(28, 48, 3),
            _MaxPool(3, overhangs=False),
            *_stage(48, 64, 2),
        )
        self.hidden = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        self.box = nn.Linear(128, 4)
        self.face = nn.Linear(128, 2)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(_flatten_like_keras(self.trunk(patches)))
        return self.box(hidden), self.face(hidden).softmax(1)[:, 1]


class _ONet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_stage(3, 32, 3),
            _MaxPool(3, overhangs=True),
            *_stage(32, 64, 3),
            _MaxPool(3, overhangs=False),
            *_stage(64, 64, 3),
            _MaxPool(2, overhangs=True),
            *_stage(64, 128, 2),
        )
        self.hidden = nn.Sequential(nn.Linear(1152, FEATURE_DIM), nn.PReLU(FEATURE_DIM))
        self.box = nn.Linear(FEATURE_DIM, 4)
        self.points = nn.Linear(FEATURE_DIM, 10)
        self.face = nn.Linear(FEATURE_DIM, 2)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = self.hidden(_flatten_like_keras(self.trunk(patches)))
        points = self.points(hidden).view(-1, 2, 5).transpose(1, 2)  # x1..x5, y1..y5
        return self.box(hidden), points, self.face(hidden).softmax(1)[:, 1], hidden


def _flatten_like_keras(features: Tensor) -> Tensor:
    return features.permute(0, 3, 2, 1).flatten(1)


def _load(net: _Net, name: str) -> _Net:
    """Fills `net` with `name` of the wheel; the arrays come in the order of the layers."""
    arrays = iter(joblib.load(io.BytesIO(_weights(name))))
    with torch.no_grad():
        for parameter in net.parameters():
            array = np.asarray(next(arrays))
            if array.ndim == 4:
                array = array.transpose(3, 2, 0, 1)
            elif array.ndim == 2:
                array = array.T
            parameter.copy_(torch.from_numpy(array.copy()).reshape(parameter.shape))
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _weights(name: str) -> bytes:
    """The wheel's own file and no other: joblib's format is a pickle, which may do anything."""
    path = _weights_folder() / f"{name}.lz4"
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256[name]:
        raise UserError(f"{path} is not the file of mtcnn 1.0.0; install that version again")
    return data


_SHA256 = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}


@cache
def _weights_folder() -> Path:
    spec = importlib.util.find_spec("mtcnn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the `mtcnn` package is missing; install it with `pip install mtcnn==1.0.0`"
        )
    return Path(spec.submodule_search_locations[0]) / "assets" / "weights"


class Mtcnn:
    """The three-stage cascade over a batch of frames of one size."""

    feature_dim = FEATURE_DIM

    def __init__(
        self,
        *,
        min_face: int = 40,
        thresholds: tuple[float, float, float] = (PNET_THRESHOLD, RNET_THRESHOLD, ONET_THRESHOLD),
        device: str = "cpu",
    ) -> None:
        self.min_face = min_face
        self.thresholds = thresholds
        self.device = torch.device(device)
        self.pnet = _load(_PNet(), "pnet").to(self.device)
        self.rnet = _load(_RNet(), "rnet").to(self.device)
        self.onet = _load(_ONet(), "onet").to(self.device)

    @torch.inference_mode()
    def __call__(self, frames: list[Frame]) -> list[Detections]:
        """Detects on frames of one size, (H, W, 3) uint8 RGB each."""
        if not frames:
            return []
        boxes, owner = self._propose(frames)
        boxes, owner = self._refine(frames, boxes, owner)
        return self._describe(frames, boxes, owner)

    def _propose(self, frames: list[Frame]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """P-Net over the image pyramid -> square boxes (N, 4) and the frame each belongs to (N,)."""
        height, width = frames[0].shape[:2]
        found: list[list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = [[] for _ in frames]
        scale = CELL / self.min_face
        sources: list[Frame] = frames
        while min(height, width) * scale >= CELL:
            size = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
            level = [
                np.asarray(cv2.resize(f, size, interpolation=cv2.INTER_AREA), np.uint8)
                for f in sources
            ]
            if sources is frames:
                # The finest level stands in for the frame from here on: to read every pixel of
                # every frame again for each level costs more than P-Net itself.
                sources = level
            offsets, faces = self.pnet(_normalised(np.stack(level), self.device))
            frame, row, column = torch.nonzero(faces > self.thresholds[0], as_tuple=True)
            if len(frame):
                corner = torch.stack([column, row], 1) * STRIDE
                cell = torch.cat([corner, corner + CELL], 1)
                shift = offsets[frame, :, row, column] * CELL
                boxes = ((cell + shift) / scale).cpu().numpy()
                scores = faces[frame, row, column].cpu().numpy()
                index = frame.cpu().numpy()
                for k in np.unique(index):
                    mine = index == k
                    keep = non_maximum_suppression(boxes[mine], scores[mine], NMS_WITHIN_SCALE)
                    found[k].append((boxes[mine][keep], scores[mine][keep]))
            scale *= PYRAMID_FACTOR
        all_boxes, owners = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.intp)]
        for k, parts in enumerate(found):
            if not parts:
                continue
            boxes = np.concatenate([p[0] for p in parts])
            scores = np.concatenate([p[1] for p in parts])
            keep = non_maximum_suppression(boxes, scores, NMS_BETWEEN_STAGES)
            all_boxes.append(_squared(boxes[keep]))
            owners.append(np.full(len(keep), k, np.intp))
        return np.concatenate(all_boxes), np.concatenate(owners)

    def _refine(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """R-Net drops most proposals and moves the rest."""
        if not len(boxes):
            return boxes, owner
        offsets, faces = self._over_patches(self.rnet, frames, boxes, owner, 24)
        scores = faces.cpu().numpy()
        moved = _shifted(boxes, offsets.cpu().numpy())
        kept = _suppress_by_frame(
            moved, scores, owner, self.thresholds[1], NMS_BETWEEN_STAGES, over_smaller=False
        )
        return _squared(moved[kept]), owner[kept]

    def _describe(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> list[Detections]:
        """O-Net gives the final boxes, the landmarks and the 256-d face feature."""
        if not len(boxes):
            return [Detections.none(FEATURE_DIM) for _ in frames]
        faces = self.refine(frames, boxes, owner)
        kept = _suppress_by_frame(
            faces.boxes,
            faces.scores,
            owner,
            self.thresholds[2],
            NMS_BETWEEN_STAGES,
            over_smaller=True,
        )
        return [faces.select(kept[owner[kept] == k]) for k in range(len(frames))]

    @torch.inference_mode()
    def refine(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> Detections:
        """O-Net alone on given boxes (N, 4), made square; owner (N,) is the frame of each, ascending.

        No search and no threshold: one face for each box, in their order.
        """
        boxes = _squared(boxes)
        offsets, points, scores, hidden = self._over_patches(self.onet, frames, boxes, owner, 48)
        corner, side = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
        return Detections(
            boxes=_shifted(boxes, offsets.cpu().numpy()),
            scores=scores.cpu().numpy(),
            landmarks=(corner + points.cpu().numpy() * side).astype(np.float32),
            features=hidden.cpu().numpy(),
        )

    def _over_patches(
        self,
        net: nn.Module,
        frames: list[Frame],
        boxes: NDArray[np.float32],
        owner: NDArray[np.intp],
        side: int,
    ) -> list[Tensor]:
        """The net's outputs for the patches of all boxes, in as few calls as memory allows."""
        parts = []
        for at in range(0, max(len(boxes), 1), _MOST_PATCHES):
            here = slice(at, at + _MOST_PATCHES)
            count = len(boxes[here])
            patches = _patches(frames, boxes[here], owner[here], side)
            parts.append([out[:count] for out in net(_normalised(patches, self.device))])
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


def _normalised(frames: NDArray[Any], device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, (x - 127.5) / 128, channels last."""
    images = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2)
    return images.float().sub_(127.5).div_(128)


def _patches(
    frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp], side: int
) -> NDArray[np.uint8]:
    """Bilinear cuts (M, side, side, 3) of N boxes, M >= N; mid-gray past the edge and in the patches
    that fill up to M.

    M is a power of two: for every new batch size oneDNN builds and keeps its kernels anew, which
    costs time, and over a long video hundreds of megabytes. One sampling call a frame, with the
    patches under each other in its map.
    """
    count = 1 << max(len(boxes) - 1, 7).bit_length()
    out = np.full((count, side, side, 3), _GRAY, np.uint8)
    steps = np.linspace(0, 1, side, dtype=np.float32)
    xs = boxes[:, 0:1] + (boxes[:, 2:3] - boxes[:, 0:1]) * steps
    ys = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * steps
    height, width = frames[0].shape[:2]
    # The published nets were trained on cuts whose first and last pixel are the box's ends.
    xs, ys = xs * np.float32((width - 1) / width), ys * np.float32((height - 1) / height)
    for k in np.unique(owner):
        mine = np.flatnonzero(owner == k)
        across = np.broadcast_to(xs[mine, None, :], (len(mine), side, side))
        down = np.broadcast_to(ys[mine, :, None], (len(mine), side, side))
        cuts = cv2.remap(
            frames[k],
            across.reshape(-1, side),
            down.reshape(-1, side),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(_GRAY, _GRAY, _GRAY),
        )
        out[mine] = cuts.reshape(-1, side, side, 3)
    return out


def _shifted(boxes: NDArray[np.float32], offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    side = boxes[:, 2:] - boxes[:, :2]
    return (boxes + offsets * np.tile(side, 2)).astype(np.float32)


def _squared(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def _suppress_by_frame(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    owner: NDArray[np.intp],
    least_score: float,
    threshold: float,
    *,
    over_smaller: bool,
) -> NDArray[np.intp]:
    """Indices that pass `least_score` and suppression within their own frame, frame by frame."""
    kept = [np.zeros(0, np.intp)]
    for k in np.unique(owner):
        mine = np.flatnonzero((owner == k) & (scores > least_score))
        if len(mine):
            keep = non_maximum_suppression(
                boxes[mine], scores[mine], threshold, over_smaller=over_smaller
            )
            kept.append(mine[keep])
    return np.concatenate(kept)
