"""A classifier as a team would bring it: a small ResNet of `transformers`, trained on a labelled table.

python -m tests.pipeline.annotators.trained ferplus_train.parquet resnet-fer/
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from emolake.pipeline.labels import canonical, label_set

SIDE = 48
LABELS = label_set("fer2013")


def pictures_of(table: Path, most: int) -> tuple[Tensor, Tensor]:
    """(N, 1, S, S) in 0..1 and (N,) of a table's first pictures whose labels are in LABELS."""
    names = [canonical(label) for label in LABELS]
    rows = pq.read_table(table, columns=["image", "label"]).slice(0, most)
    kept = [row for row in rows.to_pylist() if canonical(row["label"]) in names]
    grey = [
        cv2.resize(
            cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_GRAYSCALE), (SIDE, SIDE)
        )
        for row in kept
    ]
    targets = [names.index(canonical(row["label"])) for row in kept]
    return torch.from_numpy(np.stack(grey))[:, None].float() / 255, torch.tensor(targets)


def augmented(pictures: Tensor) -> Tensor:
    """Flipped, turned, moved, zoomed, and brighter or darker."""
    n = len(pictures)
    angle, zoom = torch.randn(n) * 0.12, 1 + torch.rand(n) * 0.25 - 0.2
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    shift = torch.rand(n, 2) * 0.16 - 0.08
    rows = (
        torch.stack([cos * flip, -sin, shift[:, 0]], 1),
        torch.stack([sin * flip, cos, shift[:, 1]], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return moved * (0.7 + 0.6 * torch.rand(n, 1, 1, 1))


def train(table: Path, folder: Path, most: int = 1 << 30, epochs: int = 8) -> Path:
    """Writes a folder as `transformers` does, with its processor."""
    torch.manual_seed(0)
    pictures, targets = pictures_of(table, most)
    config = ResNetConfig(
        num_channels=3, embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1],
        layer_type="basic", id2label=dict(enumerate(LABELS)),
        label2id={name: k for k, name in enumerate(LABELS)},
    )  # fmt: skip
    model = ResNetForImageClassification(config).train()
    size, steps = 64, epochs * -(-len(targets) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(targets)).split(size):
            seen = (augmented(pictures[batch]) - 0.5) / 0.5
            told = model(pixel_values=seen.expand(-1, 3, -1, -1)).logits
            loss = F.cross_entropy(told, targets[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    processor = ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half
    )
    processor.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
