"""Pictures as a network reads them: stacked, channels first, normalised on the device."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from emolake.pipeline.faces.encoding import decode_crop
from emolake.pipeline.models.transfer import pinned
from emolake.pipeline.video.frame import Frame

_MOST_DECODERS = 4


def decoded(encoded: Iterable[bytes], device: torch.device) -> list[Frame]:
    """The pictures (S, S, 3) uint8, RGB, that `encode_crop` took. For a GPU by several threads: one decodes
    about as many windows a second as the largest can take of EMO-LLaMA (docs/benchmarks.md)."""
    return list((_decoders().map if device.type == "cuda" else map)(decode_crop, encoded))


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1), "decode")


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
