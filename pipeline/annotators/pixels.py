"""Pictures as a network reads them: stacked, channels first, normalised on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from emolake.pipeline.models.transfer import pinned


def for_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """On its way, as `pinned` has it."""
    return pinned(torch.from_numpy(array), device)


def on_device(pictures: Tensor, device: torch.device) -> Tensor:
    """N RGB pictures (N, S, S, 3) uint8 -> (N, 3, S, S) float32, 0 to 255; bytes travel, not floats."""
    return pictures.to(device, non_blocking=True).permute(0, 3, 1, 2).float()


class Normaliser:
    """mean, std: of each channel, in parts of one, as processors' configs give them."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(3, 1, 1) * 255

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) float32, 0 to 255 -> normalised."""
        return (pixels - self._mean) / self._std
