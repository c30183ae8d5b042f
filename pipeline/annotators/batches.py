"""Micro-batches that fit: sized by the memory there is, prepared ahead, halved when memory runs out; no
window is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import torch

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

CPU_SIZE = 16
LARGEST = 128
_OFTEN, _GRAPHS = 2, 4
SHARE = 0.85
"""Of the device's memory; what is left is for fragments and for whoever shares it."""


class CompiledWhereItPays(Generic[Result]):
    """A function of tensors, compiled for the shapes that come again and again. Sizes that are passed through
    while a micro-batch grows, and windows of an odd length, are not worth a minute of compilation each, and
    torch stops at eight."""

    def __init__(self, function: Callable[..., Result]) -> None:
        self._plain = function
        self._compiled: Callable[..., Result] = torch.compile(function, dynamic=False)
        self._seen = Counter[tuple[torch.Size, ...]]()

    def __call__(self, *tensors: torch.Tensor) -> Result:
        shapes = tuple(tensor.shape for tensor in tensors)
        self._seen[shapes] += 1
        often = [of for of, times in self._seen.items() if times > _OFTEN][:_GRAPHS]
        return self._compiled(*tensors) if shapes in often else self._plain(*tensors)


class Memory(Protocol):
    """What a device tells of its memory, in bytes."""

    def started(self) -> int:
        """A forward pass begins: its peak counts from here. What is held before it, the weights above all."""
        ...

    def peak(self) -> int: ...

    def total(self) -> int: ...


class CudaMemory:
    """One GPU's; what other processes hold of it is not ours to take."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def started(self) -> int:
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def total(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        return free + torch.cuda.memory_reserved(self._device)


class MicroBatches:
    """size: items a forward pass takes now. A fixed one is the user's. Without one it is 16 on a CPU; on a
    GPU it starts at one and doubles while twice what the last pass took beside the weights fits the memory,
    so it is found in the first batches, whose results count like any other's. Running out of memory halves
    it for good.

    whole: every batch is filled up to `size` with copies of its last item, whose results are dropped, so
    that shapes stand still for a compiled model.
    """

    def __init__(
        self, size: int | None, device: torch.device | None = None, *, whole: bool = False
    ) -> None:
        on_gpu = device is not None and device.type == "cuda"
        self._memory: Memory | None = None
        if device is not None and on_gpu and size is None:
            self._memory = CudaMemory(device)
        self.size = size or (1 if on_gpu else CPU_SIZE)
        self._held = 0
        self._ahead = on_gpu
        self._whole = whole

    def run(
        self,
        items: Sequence[Item],
        prepare: Callable[[Sequence[Item]], Prepared],
        forward: Callable[[Prepared], Sequence[Result]],
    ) -> Iterator[Result]:
        """What `forward` makes of each item, in order. A single item that does not fit raises.

        prepare: what can be done without the device; on a GPU it is done for the next batch while the
        current one runs.
        """
        with ThreadPoolExecutor(1) as pool:
            start = 0
            ahead: Future[Prepared] | None = None
            while start < len(items):
                batch = items[start : start + self.size]
                given = prepare(self._filled(batch)) if ahead is None else ahead.result()
                after = items[start + len(batch) : start + len(batch) + self.size]
                ahead = pool.submit(prepare, self._filled(after)) if self._ahead and after else None
                try:
                    made = self._measured(forward, given)
                except torch.OutOfMemoryError:
                    if self.size == 1:
                        raise
                    self.size //= 2
                    self._memory, ahead = None, None
                    torch.cuda.empty_cache()
                    continue
                start += len(batch)
                yield from made[: len(batch)]
                if self._grows(len(batch)):
                    self.size *= 2
                    ahead = None

    def _filled(self, batch: Sequence[Item]) -> Sequence[Item]:
        short = self.size - len(batch) if self._whole else 0
        return [*batch, *[batch[-1]] * short]

    def _measured(
        self, forward: Callable[[Prepared], Sequence[Result]], given: Prepared
    ) -> Sequence[Result]:
        if self._memory is not None:
            self._held = self._memory.started()
        return forward(given)

    def _grows(self, last: int) -> bool:
        """Whether twice as many fit; once they do not, that is settled."""
        if self._memory is None or last < self.size:
            return False
        twice = self._held + 2 * (self._memory.peak() - self._held)
        if self.size < LARGEST and twice < SHARE * self._memory.total():
            return True
        self._memory = None
        return False
