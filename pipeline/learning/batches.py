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

    rows: (B,) their places in the batch they were taken from; features: (B, T, D) float32; labels: (B,)
    int64, -1 where an example has none; told: B.
    """

    rows: NDArray[np.int64]
    clips: Clips
    features: Tensor
    labels: Tensor
    told: tuple[Told, ...]

    def to(self, device: torch.device) -> Batch:
        clips = Clips(self.clips.pixels.to(device), self.clips.landmarks.to(device))
        return replace(
            self, clips=clips, features=self.features.to(device), labels=self.labels.to(device)
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
            self.labels[rows],
            tuple(self.told[row] for row in rows),
        )

    def __len__(self) -> int:
        return len(self.rows)


def augmented_batches(
    examples: Examples, frames: int, size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Pictures become clips of `frames` augmented views, videos of at most so many of their frames."""
    for rows, canvas, landmarks, features in _alike(examples, frames):
        clips = augmented_clips(
            canvas, landmarks, frames if canvas.shape[1] == 1 else canvas.shape[1], size, generator
        )
        features = features.expand(-1, clips.pixels.shape[1], -1)
        yield _batch(examples, rows, clips, features)


def plain_batches(examples: Examples, size: int) -> Iterator[Batch]:
    for rows, canvas, landmarks, features in _alike(examples, int(examples.count.max())):
        yield _batch(examples, rows, plain_clips(canvas, landmarks, size), features)


def _batch(examples: Examples, rows: NDArray[np.int64], clips: Clips, features: Tensor) -> Batch:
    labels = torch.from_numpy(examples.labels[rows])
    return Batch(rows, clips, features, labels, tuple(examples.told[row] for row in rows))


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
