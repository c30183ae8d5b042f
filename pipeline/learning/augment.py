"""Seeded augmentation: canvases -> short clips of crops that vary as faces on film do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from emolake.pipeline.faces.align import MIRRORED_POINTS
from emolake.pipeline.learning.examples import FIELD


@dataclass(frozen=True)
class Clips:
    """B clips of T frames.

    pixels: (B, T, C, S, S) float32 in 0..1, C = 1 (gray) or 3; landmarks: (B, T, 5, 2) float32,
    fractions of the crop.
    """

    pixels: Tensor
    landmarks: Tensor


@dataclass(frozen=True)
class Jitter:
    """How far a view may stray from the aligned crop (uniform half-ranges)."""

    rotation: float = math.radians(10)
    log_scale: float = 0.12
    shift: float = 0.06  # of the crop's side
    contrast: float = 0.3
    brightness: float = 0.15
    erase: float = 0.35  # chance that a rectangle of the clip is hidden
    soften: float = 0.2  # chance that the clip has half the resolution
    frame_motion: float = 0.2  # motion between frames of a clip, as a part of the ranges above


def augmented_clips(
    canvas: Tensor,
    landmarks: Tensor,
    frames: int,
    size: int,
    generator: torch.Generator,
    jitter: Jitter = Jitter(),
) -> Clips:
    """canvas (B, T, C, S, S) uint8, landmarks (B, T, 5, 2) in canvas pixels -> clips of `frames` views:
    of the one picture where T is 1, else of each of T = `frames`."""
    batch = len(canvas)

    def spread(scale: float, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * scale

    def moving(scale: float) -> Tensor:
        still = spread(scale, batch, 1)
        if frames == 1:
            return still
        return still + spread(scale * jitter.frame_motion, batch, frames)

    angle, log_scale = moving(jitter.rotation), moving(jitter.log_scale)
    shift = torch.stack([moving(jitter.shift), moving(jitter.shift)], -1) * 2
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    clips = _warp(canvas, landmarks, size, angle, log_scale, shift, mirrored.expand(-1, frames))
    pixels = clips.pixels
    gain = 1 + spread(jitter.contrast, batch, 1, 1, 1, 1)
    lift = spread(jitter.brightness, batch, 1, 1, 1, 1)
    middle = pixels.mean((2, 3, 4), keepdim=True)
    pixels = (pixels - middle) * gain + middle + lift
    soft = torch.rand(batch, generator=generator) < jitter.soften
    if soft.any():
        blurred = F.avg_pool2d(pixels[soft].flatten(0, 1), 2)
        blurred = F.interpolate(blurred, size=size, mode="bilinear", align_corners=False)
        pixels[soft] = blurred.unflatten(0, (-1, frames))
    pixels = _erased(pixels, jitter.erase, generator)
    return Clips(pixels.clamp(0, 1), clips.landmarks)


def plain_clips(canvas: Tensor, landmarks: Tensor, size: int, *, mirrored: bool = False) -> Clips:
    """The aligned view of each canvas (B, T, C, S, S), as the face stage cuts it."""
    zero = torch.zeros(canvas.shape[:2])
    flip = torch.full(canvas.shape[:2], mirrored)
    return _warp(canvas, landmarks, size, zero, zero, torch.zeros(*canvas.shape[:2], 2), flip)


def _warp(
    canvas: Tensor,
    landmarks: Tensor,
    size: int,
    angle: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mirrored: Tensor,
) -> Clips:
    """Samples crops; angle, log_scale, mirrored (B, T), shift (B, T, 2) in half crop sides."""
    batch, frames = angle.shape
    if canvas.shape[1] > 1:
        given = (canvas, landmarks, angle, log_scale, shift, mirrored)
        each, points, *moves = (part.flatten(0, 1)[:, None] for part in given)
        clips = _warp(each, points, size, *moves)
        unflat = (batch, frames)
        return Clips(
            clips.pixels[:, 0].unflatten(0, unflat), clips.landmarks[:, 0].unflatten(0, unflat)
        )
    canvas, landmarks = canvas[:, 0], landmarks[:, 0]
    cos, sin = torch.cos(angle), torch.sin(angle)
    zoom = torch.exp(log_scale)
    flip = torch.where(mirrored, -1.0, 1.0)
    # Crop coordinates (-1..1) -> canvas coordinates (-1..1).
    rows = [
        torch.stack([cos * zoom * flip, -sin * zoom, shift[..., 0]], -1),
        torch.stack([sin * zoom * flip, cos * zoom, shift[..., 1]], -1),
    ]
    matrix = torch.stack(rows, -2) / FIELD
    grid = F.affine_grid(matrix.flatten(0, 1), [batch * frames, 1, size, size], align_corners=False)
    source = canvas.float().div(255)
    channels, side = source.shape[1], source.shape[2]
    # The frames of a clip stand one below the other in one grid, so no canvas is copied per frame.
    sampled = F.grid_sample(
        source,
        grid.view(batch, frames * size, size, 2),
        align_corners=False,
        padding_mode="border",
    )
    pixels = sampled.view(batch, channels, frames, size, size).transpose(1, 2).contiguous()
    normal = ((landmarks + 0.5) / side * 2 - 1)[:, None, :, :]  # (B, 1, 5, 2)
    centred = normal - matrix[..., 2][:, :, None, :]
    inverse = torch.linalg.inv(matrix[..., :2])
    moved = (centred @ inverse.transpose(-1, -2) + 1) / 2
    order = torch.tensor(MIRRORED_POINTS)
    moved = torch.where(mirrored[..., None, None], moved[:, :, order], moved)
    return Clips(pixels, moved)


def _erased(pixels: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Random erasing (Zhong et al. 2020) with the clip's mean; the same place in every frame."""
    batch, size = len(pixels), pixels.shape[-1]
    hit = torch.rand(batch, generator=generator) < chance
    extent = (torch.rand(batch, 2, generator=generator) * 0.35 + 0.1) * size
    corner = torch.rand(batch, 2, generator=generator) * (size - extent)
    steps = torch.arange(size)
    inside_y = (steps >= corner[:, :1]) & (steps < (corner + extent)[:, :1])
    inside_x = (steps >= corner[:, 1:]) & (steps < (corner + extent)[:, 1:])
    hidden = inside_y[:, :, None] & inside_x[:, None, :] & hit[:, None, None]
    fill = pixels.mean((1, 3, 4), keepdim=True)
    return torch.where(hidden[:, None, None], fill, pixels)
