"""In which numbers a network computes.

bfloat16 means mixed precision: the matrices of linear layers are held and multiplied in bfloat16, what is
added up along the way (the residual stream, norms, embeddings, softmax) stays in float32, as torch's
autocast has it. It is as fast as all in bfloat16, and its answers are much nearer to float32's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]


def chosen(precision: Precision | None, device: str) -> Precision:
    """What was asked for; else bfloat16 on a GPU and float32 on a CPU."""
    return precision or ("float32" if device == "cpu" else "bfloat16")


def weight_dtypes(network: nn.Module, precision: Precision) -> Callable[[str], torch.dtype]:
    """By a parameter's name, in which type it is held."""
    lower: set[str] = set()
    if precision == "bfloat16":
        lower = {
            f"{name}.{leaf}"
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear)
            for leaf in ("weight", "bias")
        }
    return lambda name: torch.bfloat16 if name in lower else torch.float32


def computing(precision: Precision | None, device: torch.device) -> AbstractContextManager[object]:
    """Around a forward pass of a network whose weights are held so."""
    wanted = chosen(precision, device.type) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
