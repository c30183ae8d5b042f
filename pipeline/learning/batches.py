"""Examples -> batches of clips of one length, augmented for training or plain for scoring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emolake.pipeline.learning.augment import Clips, augmented_clips, plain_clips
from emolake.pipeline.learning.examples import Examples
from emolake.pipeline.models.prompts import Told


@dataclass(frozen=True)
class Batch:
    """B examples of T frames.

    rows: (B,) their places in the batch they were taken from; features: (B, T, D) float32; shares: (B, L)
    float32, rows of what people saw, 0 where an example has no label; told: B.
    """

    rows: NDArray[np.int64]
    clips: Clips
    features: Tensor
    shares: Tensor
    told: tuple[Told, ...]

    def to(self, device: torch.device) -> Batch:
        clips = Clips(self.clips.pixels.to(device), self.clips.landmarks.to(device))
        return replace(
            self, clips=clips, features=self.features.to(device), shares=self.shares.to(device)
        )

    def parts(self, count: int) -> list[Batch]:
        """`count` batches of about equal size, or fewer where there are fewer examples."""
        return [
            self._part(rows) for rows in np.array_split(np.arange(len(self)), count) if len(rows)
        ]

    def _part(self, rows: NDArray[np.int64]) -> Batch:
        return Batch(
            self.rows[rows],
            Clips(self.clips.pixels[rows], self.clips.landmarks[rows]),
            self.features[rows],
            self.shares[rows],
            tuple(self.told[row] for row in rows),
        )

    def __len__(self) -> int:
        return len(self.rows)


def augmented_batches(
    examples: Examples, frames: int, size: int, generator: torch.Generator, mixup: float = 0.0
) -> Iterator[Batch]:
    """Pictures become clips of `frames` augmented views, videos of at most so many of their frames.

    mixup: of Beta(mixup, mixup) is drawn how much of another labelled example each is mixed with (Zhang
    et al. 2018).
    """
    for rows, canvas, landmarks, features in _alike(examples, frames):
        clips = augmented_clips(
            canvas, landmarks, frames if canvas.shape[1] == 1 else canvas.shape[1], size, generator
        )
        features = features.expand(-1, clips.pixels.shape[1], -1)
        batch = _batch(examples, rows, clips, features)
        yield _mixed(batch, mixup, generator) if mixup else batch


def _mixed(batch: Batch, alpha: float, generator: torch.Generator) -> Batch:
    """Each labelled example with at most half of another's pixels, features and shares; the points stay
    its own, being where the larger part of the picture has them."""
    if not bool(batch.shares.any(1).all()):
        return batch
    other = torch.randperm(len(batch), generator=generator)
    draws = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    drawn = torch.from_numpy(draws.beta(alpha, alpha, len(batch)).astype(np.float32))
    part = torch.minimum(drawn, 1 - drawn)

    def mixed(own: Tensor) -> Tensor:
        return torch.lerp(own, own[other], part.view(-1, *[1] * (own.ndim - 1)))

    clips = Clips(mixed(batch.clips.pixels), batch.clips.landmarks)
    return replace(batch, clips=clips, features=mixed(batch.features), shares=mixed(batch.shares))


def plain_batches(examples: Examples, size: int) -> Iterator[Batch]:
    for rows, canvas, landmarks, features in _alike(examples, int(examples.count.max())):
        yield _batch(examples, rows, plain_clips(canvas, landmarks, size), features)


def _batch(examples: Examples, rows: NDArray[np.int64], clips: Clips, features: Tensor) -> Batch:
    shares = torch.from_numpy(examples.shares[rows])
    return Batch(rows, clips, features, shares, tuple(examples.told[row] for row in rows))


def _alike(
    examples: Examples, most: int
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor, Tensor]]:
    """Examples of equal length: rows, canvas (B, T, C, S, S), landmarks (B, T, 5, 2), features
    (B, T, D). Of longer ones `most` frames, evenly chosen."""
    lengths = np.minimum(examples.count, most)
    for length in np.unique(lengths):
        rows = np.nonzero(lengths == length)[0]
        chosen = np.stack(
            [
                examples.first[row]
                + np.linspace(0, examples.count[row] - 1, length).round().astype(np.int64)
                for row in rows
            ]
        )
        canvas = torch.from_numpy(np.asarray(examples.canvas[chosen]))
        yield (
            rows,
            canvas.permute(0, 1, 4, 2, 3),
            torch.from_numpy(examples.landmarks[chosen]),
            torch.from_numpy(examples.features[chosen]),
        )
