"""RetinaFace (Deng et al. 2019, arXiv 1905.00641): the network that two published families share.

`retinaface-pytorch` (ResNet-50) and biubug6/Pytorch_Retinaface (ResNet-50, mobilenet0.25) have the
same tensors under the same names and differ in preprocessing, which no checkpoint tells: the config
must say which (`Preprocess`). Names of modules are those of the published state dicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Preprocess = Literal["retinaface-pytorch", "biubug6"]
Backbone = Literal["resnet50", "mobilenet0.25"]

STEPS = (8, 16, 32)
MIN_SIZES = ((16, 32), (64, 128), (256, 512))
VARIANCES = (0.1, 0.2)
_ANCHORS = 2


@dataclass(frozen=True)
class Heads:
    """Raw outputs over P priors: boxes (N, P, 4), logits (N, P, 2) with face second, points (N, P, 10)."""

    boxes: Tensor
    logits: Tensor
    points: Tensor


def _conv(
    before: int, after: int, kernel: int, stride: int = 1, slope: float | None = None
) -> nn.Module:
    """Convolution and batch norm; with `slope` a leaky ReLU behind (0: a ReLU)."""
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(after),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope))
    return nn.Sequential(*layers)


class _Bottleneck(nn.Module):
    """ResNet v1.5: the stride sits in the 3x3 convolution."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + skip)


class _ResNet50(nn.Module):
    channels = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._layer(64, 64, 3, 1)
        self.layer2 = self._layer(256, 128, 4, 2)
        self.layer3 = self._layer(512, 256, 6, 2)
        self.layer4 = self._layer(1024, 512, 3, 2)

    @staticmethod
    def _layer(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [_Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(_Bottleneck(before, width, stride), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


def _depthwise(before: int, after: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False),
        nn.BatchNorm2d(before),
        nn.LeakyReLU(0.1),
        nn.Conv2d(before, after, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(0.1),
    )


class _MobileNetQuarter(nn.Module):
    channels = (64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        first = ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.stage1 = nn.Sequential(_conv(3, 8, 3, 2, 0.1), *(_depthwise(*d) for d in first))
        self.stage2 = nn.Sequential(
            _depthwise(64, 128, 2), *(_depthwise(128, 128, 1) for _ in range(5))
        )
        self.stage3 = nn.Sequential(_depthwise(128, 256, 2), _depthwise(256, 256, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eighth = self.stage1(x)
        sixteenth = self.stage2(eighth)
        return eighth, sixteenth, self.stage3(sixteenth)


class _Pyramid(nn.Module):
    def __init__(self, channels: tuple[int, int, int], width: int, slope: float) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (_conv(c, width, 1, 1, slope) for c in channels)
        self.merge1 = _conv(width, width, 3, 1, slope)
        self.merge2 = _conv(width, width, 3, 1, slope)

    def forward(self, levels: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = (
            self.output1(levels[0]),
            self.output2(levels[1]),
            self.output3(levels[2]),
        )
        # Nearest to the exact size: odd sizes are not doubled evenly.
        middle = self.merge2(middle + F.interpolate(coarse, middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, fine.shape[2:], mode="nearest"))
        return fine, middle, coarse


class _ContextModule(nn.Module):
    """SSH's context module (Najibi et al. 2017). The mixed case of the names is the publishers'."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.conv3X3 = _conv(width, half, 3)
        self.conv5X5_1 = _conv(width, quarter, 3, 1, slope)
        self.conv5X5_2 = _conv(quarter, quarter, 3)
        self.conv7X7_2 = _conv(quarter, quarter, 3, 1, slope)
        self.conv7x7_3 = _conv(quarter, quarter, 3)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.conv5X5_1(x)
        far = self.conv7x7_3(self.conv7X7_2(shared))
        return torch.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(shared), far], 1))


class _Head(nn.Module):
    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, _ANCHORS * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.values)


class RetinaFace(nn.Module):
    """Pictures (N, 3, H, W), preprocessed -> `Heads` over all priors, the 1/8 level first."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.body = _ResNet50() if backbone == "resnet50" else _MobileNetQuarter()
        width = 256 if backbone == "resnet50" else 64
        slope = 0.1 if width <= 64 else 0.0
        self.fpn = _Pyramid(self.body.channels, width, slope)
        self.ssh1, self.ssh2, self.ssh3 = (_ContextModule(width, slope) for _ in STEPS)
        self.ClassHead, self.BboxHead, self.LandmarkHead = (
            nn.ModuleList([_Head(width, values) for _ in STEPS]) for values in (2, 4, 10)
        )

    def forward(self, images: Tensor) -> Heads:
        levels = self.fpn(self.body(images))
        maps = [ssh(x) for ssh, x in zip((self.ssh1, self.ssh2, self.ssh3), levels, strict=True)]

        def joined(heads: nn.ModuleList) -> Tensor:
            return torch.cat([head(x) for head, x in zip(heads, maps, strict=True)], 1)

        return Heads(joined(self.BboxHead), joined(self.ClassHead), joined(self.LandmarkHead))


def backbone_of(state: Mapping[str, Tensor]) -> Backbone:
    """Which of the two networks a state dict belongs to, by its first layer."""
    return "mobilenet0.25" if any(k.startswith("body.stage1.") for k in state) else "resnet50"


def published_state(state: Mapping[str, object]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the plain names: wrappers and prefixes that occur are taken off."""
    inner = state.get("state_dict")
    tensors = inner if isinstance(inner, Mapping) else state
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            out[str(name).removeprefix("module.").removeprefix("model.")] = tensor
    return out


def priors(height: int, width: int) -> NDArray[np.float32]:
    """(P, 4) float32 centre x, y, width, height as fractions; level, row, column, size in order."""
    levels = []
    for step, sizes in zip(STEPS, MIN_SIZES, strict=True):
        rows, columns = -(-height // step), -(-width // step)
        y, x = np.mgrid[:rows, :columns].astype(np.float64) + 0.5
        cells = [
            np.stack(
                [
                    x * step / width,
                    y * step / height,
                    np.full_like(x, size / width),
                    np.full_like(x, size / height),
                ],
                -1,
            )
            for size in sizes
        ]
        levels.append(np.stack(cells, 2).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def decode(heads: Heads, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads and priors (P, 4) -> boxes (N, P, 4) x1 y1 x2 y2 and points (N, P, 5, 2) as fractions of
    the picture, scores (N, P)."""
    centre, size = anchors[:, :2], anchors[:, 2:]
    middle = centre + heads.boxes[..., :2] * VARIANCES[0] * size
    half = size * torch.exp(heads.boxes[..., 2:] * VARIANCES[1]) / 2
    points = heads.points.unflatten(-1, (5, 2)) * VARIANCES[0] * size[:, None] + centre[:, None]
    return torch.cat([middle - half, middle + half], -1), points, heads.logits.softmax(-1)[..., 1]


def preprocessed(frames: NDArray[np.uint8], convention: Preprocess) -> Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 as the checkpoint's family was trained."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    if convention == "biubug6":
        mean = images.new_tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
        return images.flip(1) - mean  # BGR, as OpenCV reads pictures
    mean = images.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = images.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (images / 255 - mean) / std
