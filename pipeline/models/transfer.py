"""From the host to the device without waiting: a copy out of memory that is not pinned, however it is asked
for, waits until the device has done all that was asked of it before."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """On its way: in pinned memory where the device is a GPU."""
    on_its_way = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory() if on_its_way else tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    return pinned(tensor, device).to(device, non_blocking=True)
