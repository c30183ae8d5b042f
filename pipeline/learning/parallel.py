"""Training in one process, or in several that torch.distributed has joined (Ray Train does that)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Team:
    """The processes that train together, seen from one of them."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def here(cls) -> Team:
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if not distributed.is_initialized():
            return cls(0, 1, device)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def leads(self) -> bool:
        """Whether this process writes what the team makes."""
        return self.rank == 0

    def joined(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are the mean over the team's."""
        if self.size == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        # A stage leaves some parameters out: the Q-Former's text layers behind its last queries.
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def alike(self, module: nn.Module) -> None:
        """The leader's buffers for all: batch statistics differ from process to process."""
        if self.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all have come so far."""
        if self.size > 1:
            distributed.barrier()
