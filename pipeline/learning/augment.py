"""Seeded augmentation: canvases -> short clips of crops that vary as faces on film do."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np
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
    """How far a view may stray from the aligned crop: uniform half-ranges, and the chance that a clip is
    spoilt as films spoil faces."""

    rotation: float = math.radians(15)
    log_scale: float = 0.15
    log_aspect: float = 0.28  # of width to height: archives hold films that were squeezed to fit
    shift: float = 0.08  # of the crop's side
    gamma: float = 0.4  # of its logarithm: dark rooms and bright skies
    contrast: float = 0.3
    brightness: float = 0.15
    erase: float = 0.25
    blur: float = 0.15
    shrink: float = 0.4
    least_pixels: int = 8  # a shrunk crop's side
    noise: float = 0.15
    most_noise: float = 0.06  # standard deviation
    compress: float = 0.25
    qualities: tuple[int, int] = (10, 70)  # of JPEG
    speak: float = 0.4
    frame_motion: float = 0.2  # motion between frames of a clip, as a part of the ranges above


STILL = Jitter(
    rotation=0.0, log_scale=0.0, log_aspect=0.0, shift=0.0, gamma=0.0, contrast=0.0, brightness=0.0,
    erase=0.0, blur=0.0, shrink=0.0, noise=0.0, compress=0.0, speak=0.0,
)  # fmt: skip
"""Nothing strays."""


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
    aspect = spread(jitter.log_aspect, batch, 1).expand(-1, frames)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    speech = _speech(batch, frames, jitter.speak, generator)
    moves = Moves(angle, log_scale, aspect, shift, mirrored.expand(-1, frames))
    clips = _warp(canvas, landmarks, size, moves, speech)
    pixels = clips.pixels
    pixels = pixels.clamp(0, 1) ** spread(jitter.gamma, batch, 1, 1, 1, 1).exp()
    gain = 1 + spread(jitter.contrast, batch, 1, 1, 1, 1)
    lift = spread(jitter.brightness, batch, 1, 1, 1, 1)
    middle = pixels.mean((2, 3, 4), keepdim=True)
    pixels = (pixels - middle) * gain + middle + lift
    pixels = _erased(_filmed(pixels.clamp(0, 1), jitter, generator), jitter.erase, generator)
    return Clips(pixels.clamp(0, 1), clips.landmarks)


def _chosen(chance: float, batch: int, generator: torch.Generator) -> list[int]:
    return torch.nonzero(torch.rand(batch, generator=generator) < chance)[:, 0].tolist()


def _filmed(pixels: Tensor, jitter: Jitter, generator: torch.Generator) -> Tensor:
    """Some clips blurred by motion, shrunk as faces far away are, with a sensor's noise, compressed; in
    the order in which a camera does it. pixels: (B, T, C, S, S) in 0..1."""
    batch, _, channels, size = pixels.shape[:4]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for row in _chosen(jitter.blur, batch, generator):
        kernel = _motion_kernel(uniform(1, 4), uniform(0, math.pi)).expand(channels, 1, -1, -1)
        pixels[row] = F.conv2d(
            F.pad(pixels[row], [_REACH] * 4, mode="replicate"), kernel, groups=channels
        )
    for row in _chosen(jitter.shrink, batch, generator):
        # Even in the logarithm: half as small is as likely again.
        side = round(size * math.exp(uniform(math.log(jitter.least_pixels / size), 0)))
        small = F.interpolate(pixels[row], size=side, mode="area")
        pixels[row] = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    for row in _chosen(jitter.noise, batch, generator):
        grain = torch.randn(pixels[row].shape, generator=generator)
        pixels[row] += grain * uniform(0, jitter.most_noise)
    for row in _chosen(jitter.compress, batch, generator):
        quality = round(uniform(*jitter.qualities))
        pixels[row] = torch.stack([compressed(frame, quality) for frame in pixels[row]])
    return pixels


_REACH = 3  # pixels that a motion kernel reaches from its middle


def _motion_kernel(length: float, angle: float) -> Tensor:
    """(7, 7) of sum 1: a soft line of `length` pixels."""
    steps = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    kernel = torch.exp(-0.5 * ((along / (length / 2)) ** 2 + (across / 0.6) ** 2))
    return kernel / kernel.sum()


def compressed(frame: Tensor, quality: int) -> Tensor:
    """(C, H, W) float32 in 0..1, through JPEG and back; C is 1 (gray) or 3 (RGB)."""
    levels = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    _, data = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    flags = cv2.IMREAD_GRAYSCALE if frame.shape[0] == 1 else cv2.IMREAD_COLOR
    back = np.asarray(cv2.imdecode(data, flags), np.uint8).reshape(levels.shape)[..., ::-1]
    return torch.from_numpy(back.copy()).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Speech:
    """Mouths of clips as speech moves them, in parts of the mouth's width. open: (B, T), how far the lower
    lip is let down; wide: (B, T), logarithm of how much wider the mouth is; dark: (B, T) in 0..1, how dark
    it is between the lips."""

    open: Tensor
    wide: Tensor
    dark: Tensor


_MOST_OPEN, _MOST_WIDE = 0.4, 0.15
_SYLLABLE = 0.9  # radians a frame, at four frames a second half the rate at which people speak


def _speech(batch: int, frames: int, chance: float, generator: torch.Generator) -> Speech:
    """Every second clip or so speaks: a mouth that opens and shuts, and in a single picture one caught
    half open. What is said is no expression, so the label stays."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    speaks = (uniform(batch, 1) < chance).float()
    phase = uniform(batch, 1) * 2 * math.pi
    rate = _SYLLABLE * (0.5 + uniform(batch, 1))
    beat = torch.sin(phase + rate * torch.arange(frames)).clamp_min(0)
    loud = speaks * _MOST_OPEN * uniform(batch, 1)
    return Speech(
        open=loud * beat * (0.6 + 0.4 * uniform(batch, frames)),
        wide=speaks * _MOST_WIDE * (uniform(batch, frames) * 2 - 1),
        dark=(0.3 + 0.5 * uniform(batch, 1)).expand(-1, frames),
    )


def plain_clips(canvas: Tensor, landmarks: Tensor, size: int, *, mirrored: bool = False) -> Clips:
    """The aligned view of each canvas (B, T, C, S, S), as the face stage cuts it."""
    zero = torch.zeros(canvas.shape[:2])
    shift = torch.zeros(*canvas.shape[:2], 2)
    moves = Moves(zero, zero, zero, shift, torch.full(canvas.shape[:2], mirrored))
    return _warp(canvas, landmarks, size, moves, Speech(zero, zero, zero))


@dataclass(frozen=True)
class Moves:
    """How the views of B clips stray from the aligned crop. angle: (B, T) radians; log_scale, log_aspect:
    (B, T); shift: (B, T, 2) in half crop sides; mirrored: (B, T)."""

    angle: Tensor
    log_scale: Tensor
    log_aspect: Tensor
    shift: Tensor
    mirrored: Tensor

    def matrix(self) -> Tensor:
        """(B, T, 2, 3): crop coordinates (-1..1) -> canvas coordinates (-1..1)."""
        cos, sin, zoom = torch.cos(self.angle), torch.sin(self.angle), torch.exp(self.log_scale)
        wide, high = torch.exp(self.log_aspect / 2), torch.exp(-self.log_aspect / 2)
        flip = torch.where(self.mirrored, -1.0, 1.0)
        rows = [
            torch.stack([cos * zoom * wide * flip, -sin * zoom * high, self.shift[..., 0]], -1),
            torch.stack([sin * zoom * wide * flip, cos * zoom * high, self.shift[..., 1]], -1),
        ]
        return torch.stack(rows, -2) / FIELD


def _each_frame(parts: Moves | Speech) -> list[Tensor]:
    """As of clips of one frame."""
    return [getattr(parts, part.name).flatten(0, 1)[:, None] for part in fields(parts)]


def _warp(canvas: Tensor, landmarks: Tensor, size: int, moves: Moves, speech: Speech) -> Clips:
    batch, frames = moves.angle.shape
    if canvas.shape[1] > 1:
        each, points = canvas.flatten(0, 1)[:, None], landmarks.flatten(0, 1)[:, None]
        still, said = Moves(*_each_frame(moves)), Speech(*_each_frame(speech))
        clips = _warp(each, points, size, still, said)
        unflat = (batch, frames)
        return Clips(
            clips.pixels[:, 0].unflatten(0, unflat), clips.landmarks[:, 0].unflatten(0, unflat)
        )
    canvas, landmarks = canvas[:, 0], landmarks[:, 0]
    matrix = moves.matrix()
    source = canvas.float().div(255)
    channels, side = source.shape[1], source.shape[2]
    normal = ((landmarks + 0.5) / side * 2 - 1)[:, None, :, :]  # (B, 1, 5, 2)
    centred = normal - matrix[..., 2][:, :, None, :]
    inverse = torch.linalg.inv(matrix[..., :2])
    moved = (centred @ inverse.transpose(-1, -2) + 1) / 2
    order = torch.tensor(MIRRORED_POINTS)
    moved = torch.where(moves.mirrored[..., None, None], moved[:, :, order], moved)
    grid, shade = _spoken_grid(moved, speech, size)
    grid = torch.einsum("btij,bthwj->bthwi", matrix[..., :2], grid) + matrix[..., None, None, :, 2]
    # The frames of a clip stand one below the other in one grid, so no canvas is copied per frame.
    sampled = F.grid_sample(
        source,
        grid.reshape(batch, frames * size, size, 2),
        align_corners=False,
        padding_mode="border",
    )
    pixels = sampled.view(batch, channels, frames, size, size).transpose(1, 2).contiguous()
    return Clips(pixels * shade[:, :, None], moved)


def _spoken_grid(landmarks: Tensor, speech: Speech, size: int) -> tuple[Tensor, Tensor]:
    """Where in its crop each pixel of a speaking face is taken from, (B, T, S, S, 2) in -1..1, and what
    its brightness is multiplied by, (B, T, S, S). landmarks: (B, T, 5, 2), fractions of the crop.

    Below the line through the mouth's corners all that is near is let down; what opens between shows the
    line's own colour, darkened.
    """
    steps = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    if not (speech.open.any() or speech.wide.any()):
        grid = torch.stack([x, y], -1) * 2 - 1
        return grid.expand(*speech.open.shape, -1, -1, -1), torch.ones(
            *speech.open.shape, size, size
        )
    corners = landmarks[:, :, 3:]
    middle = corners.mean(2)[..., None, None, :]  # (B, T, 1, 1, 2)
    width = (corners[:, :, 1] - corners[:, :, 0]).norm(dim=-1).clamp_min(0.1)[..., None, None]
    right, down = (x - middle[..., 0]) / width, (y - middle[..., 1]) / width
    near = torch.exp(-(right**2) - down**2)
    opened, wide, dark = (part[..., None, None] for part in (speech.open, speech.wide, speech.dark))
    lips = (
        (1 - (right / 0.45) ** 2).clamp_min(0).sqrt()
    )  # 1 in the middle of the mouth, 0 at its corners
    let_down = opened * torch.exp(-((right / 0.9) ** 2))
    gap = let_down * lips
    follows = (down / (gap + 0.3 * (1 - lips) + 1e-3)).clamp(0, 1)
    source_x = middle[..., 0] + width * right * (1 - near * (1 - torch.exp(-wide)))
    source_y = y - width * let_down * follows
    softly = 0.04  # of the mouth's width
    between = ((down / softly).clamp(0, 1) * ((gap - down) / softly).clamp(0, 1)) * (gap > 0)
    return torch.stack([source_x, source_y], -1) * 2 - 1, 1 - dark * between


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
