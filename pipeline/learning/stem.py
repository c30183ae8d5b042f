"""Stage one: the tower's convolutional stem as a plain classifier, so that stage two starts from
features worth aligning (LLaMA-VID too trains in two stages)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emolake.pipeline.learning.batches import Batch
from emolake.pipeline.models.config import EmoLlamaConfig
from emolake.pipeline.models.vision import ConvStem


def soft_cross_entropy(
    log_scores: Tensor, shares: Tensor, weights: Tensor, smoothing: float
) -> Tensor:
    """(B,): of (B, L) log-probabilities against shares (B, L), each label's part weighted by `weights`
    (L,), smoothing of the whole spread evenly over the labels. Rows without shares give 0."""
    labels = shares.shape[1]
    target = shares * (1 - smoothing) + shares.sum(1, keepdim=True) * smoothing / labels
    return -(target * weights * log_scores).sum(1)


class StemClassifier(nn.Module):
    """The stem under global average pooling and one linear layer; it sees each clip's first frame
    and, being no more than a stem, no face features."""

    def __init__(self, config: EmoLlamaConfig, n_labels: int, size: int | None = None) -> None:
        super().__init__()
        self.size = size or config.vision.image_size
        processor = config.processor
        self.register_buffer("mean", torch.tensor(processor.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.std).view(3, 1, 1), persistent=False)
        self.stem = ConvStem(config.vision.stem_channels)
        self.head = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(config.vision.stem_channels[-1], n_labels)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def log_scores(self, batch: Batch) -> Tensor:
        pixels = (batch.clips.pixels[:, 0] - self.mean) / self.std  # type: ignore[operator]
        pooled = self.stem(pixels.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        scores: Tensor = self.head(pooled).float().log_softmax(-1)
        return scores

    def forward(self, batch: Batch, weights: Tensor, smoothing: float) -> Tensor:
        """(B,) losses: cross entropy against what people saw; an example without a label has none."""
        return soft_cross_entropy(self.log_scores(batch), batch.shares, weights, smoothing)
