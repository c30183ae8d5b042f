"""Vision towers: EVA ViT from `transformers`' InstructBLIP, and the same layers on a convolutional stem."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import InstructBlipVisionConfig, InstructBlipVisionModel

from emolake.pipeline.models.config import VisionConfig


class VisionTower(nn.Module):
    """Pictures (N, 3, H, W) -> features (N, 1 + P, C) before any final norm, class token first.

    The model's `post_layernorm` is LLaMA-VID's `vlm_att_ln`: only the Q-Former sees its output, so
    it is applied by `normed` and not here.
    """

    def __init__(self, config: VisionConfig, attention: str = "sdpa") -> None:
        super().__init__()
        blip = InstructBlipVisionConfig(  # type: ignore[call-arg]
            hidden_size=config.width,
            intermediate_size=config.mlp_hidden,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            initializer_range=0.02,
            attn_implementation=attention,
        )
        self.model = InstructBlipVisionModel(blip)
        if config.kind == "conv_vit":
            self.model.embeddings = ConvStemEmbeddings(config)  # type: ignore[assignment]

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.model.embeddings(pixel_values)
        features: Tensor = self.model.encoder(inputs_embeds=hidden).last_hidden_state
        return features

    def fuse(self) -> None:
        """Joins each batch norm to the convolution before it, for inference: fewer passes over memory.
        The weights are no longer those of a folder after it."""
        for part in list(self.modules()):
            if isinstance(part, nn.Sequential):
                for at, (first, second) in enumerate(pairwise(part.children())):
                    if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                        part[at], part[at + 1] = fuse_conv_bn_eval(first, second), nn.Identity()

    def normed(self, features: Tensor) -> Tensor:
        out: Tensor = self.model.post_layernorm(features)
        return out


class ConvStem(nn.Module):
    """Residual convolutions (He et al. 2016): (N, 3, H, W) -> (N, C, H/s, W/s), C the last channel
    count and s = 2 ** len(channels)."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        entry = channels[0] // 2
        self.entry = nn.Sequential(
            nn.Conv2d(3, entry, 3, padding=1, bias=False), nn.BatchNorm2d(entry), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        for before, after in zip((entry, *channels), channels, strict=False):
            blocks += [_Residual(before, after, stride=2), _Residual(after, after, stride=1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixel_values: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.entry(pixel_values))
        return out


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class ConvStemEmbeddings(nn.Module):
    """In place of the patch embedding: stem, 1x1 projection, class token, learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.stem = ConvStem(config.stem_channels)
        self.projection = nn.Conv2d(config.stem_channels[-1], config.width, 1)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position_embedding = nn.Parameter(
            torch.randn(1, config.grid**2 + 1, config.width) * 0.02
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.projection(self.stem(pixel_values)).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), -1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding
