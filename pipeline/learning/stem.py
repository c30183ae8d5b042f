"""Stage one: the tower's convolutional stem as a plain classifier, so that stage two starts from
features worth aligning (LLaMA-VID too trains in two stages)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emolake.pipeline.learning.batches import Batch
from emolake.pipeline.models.config import EmoLlamaConfig
from emolake.pipeline.models.vision import ConvStem


class StemClassifier(nn.Module):
    """The stem under global average pooling and one linear layer; it sees each clip's first frame
    and, being no more than a stem, no face features."""

    def __init__(self, config: EmoLlamaConfig, n_labels: int) -> None:
        super().__init__()
        self.size = config.vision.image_size
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
        """(B,) losses; an example without a label has none."""
        scores = self.log_scores(batch)
        known = (batch.labels >= 0).to(scores.dtype)
        target = batch.labels.clamp_min(0)
        hit = nn.functional.nll_loss(scores, target, weights, reduction="none")
        # As nn.functional's own mean takes it: over the weights, not the examples.
        hit = hit / weights[target].mean()
        return known * ((1 - smoothing) * hit - smoothing * scores.mean(1))
