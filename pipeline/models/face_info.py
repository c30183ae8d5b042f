"""Face Info Mining (EMO-LLaMA, arXiv 2408.11424): facial priors of a clip -> tokens for the language model.

The paper gives the idea (global and local facial information, a Q-Former-style clue aggregator);
sizes, the temporal positions and the landmark embedding are ours. See docs/model.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from emolake.pipeline.models.config import FaceInfoConfig


class FaceInfoMining(nn.Module):
    """K learned queries read a clip's global, local and frame tokens."""

    def __init__(self, config: FaceInfoConfig, language_width: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.global_norm = nn.LayerNorm(config.global_dim)
        self.global_projection = nn.Linear(config.global_dim, width)
        self.local_projection = nn.Linear(2, width)
        self.landmark_embedding = nn.Parameter(torch.randn(config.num_landmarks, width) * 0.02)
        self.frame_projection = nn.Linear(language_width, width)
        self.query_embedding = nn.Parameter(torch.randn(config.num_queries, width) * 0.02)
        self.clue_norm = nn.LayerNorm(width)
        block = nn.TransformerDecoderLayer(
            width,
            config.heads,
            dim_feedforward=2 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.aggregator = nn.TransformerDecoder(block, config.depth, norm=nn.LayerNorm(width))
        self.output_projection = nn.Linear(width, language_width)

    def forward(self, features: Tensor, landmarks: Tensor, frame_tokens: Tensor) -> Tensor:
        """features (B, T, Dg), landmarks (B, T, P, 2) as fractions of the aligned crop,
        frame_tokens (B, T, k, D) -> face tokens (B, K, D)."""
        batch, frames = features.shape[:2]
        whole = self.global_projection(self.global_norm(features))[:, :, None]
        # Centred, and scaled so that a typical deviation from the crop's middle is about one.
        local = self.local_projection((landmarks - 0.5) * 4) + self.landmark_embedding
        seen = self.frame_projection(frame_tokens)
        clues = torch.cat([whole, local, seen], dim=2)
        clues = clues + _sinusoid(frames, clues.shape[-1], clues)[None, :, None]
        queries = self.query_embedding.expand(batch, -1, -1)
        found = self.aggregator(queries, self.clue_norm(clues.flatten(1, 2)))
        out: Tensor = self.output_projection(found)
        return out


def _sinusoid(frames: int, width: int, like: Tensor) -> Tensor:
    """(T, width) sinusoidal positions (Vaswani et al. 2017), so any clip length has one."""
    position = torch.arange(frames, device=like.device, dtype=torch.float32)[:, None]
    rate = torch.exp(
        torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
        * (-math.log(10000.0) / width)
    )
    angle = position * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(like.dtype)
