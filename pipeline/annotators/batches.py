"""Micro-batches that fit: out of memory halves them, and no window is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatches:
    """size: items a forward pass takes; running out of memory halves it for good."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self, items: Sequence[Item], forward: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> Iterator[Result]:
        """What `forward` makes of each item, in order. A single item that does not fit raises."""
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            try:
                made = forward(batch)
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
                self.size //= 2
                torch.cuda.empty_cache()
                continue
            start += len(batch)
            yield from made
