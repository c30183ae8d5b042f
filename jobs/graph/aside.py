"""Nodes whose devices break: they get two more tries, and then a run goes on without their GPUs."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emolake.pipeline.errors import JobFailed

_TRIES = 3
_IN_A_ROW_S = 3600.0  # a device that broke so long ago has worked since
_TAKEN_S = 30.0
_BROKEN = re.compile(r"errors\.DeviceFailed: (the device of \S+ \(node (\w+)\) failed: .+)")
_GONE = re.compile(
    r"errors\.JobFailed: (Ray granted a GPU on \S+ \(node (\w+)\) and torch sees none there)"
)


@ray.remote(num_cpus=0)
class _Keeper:
    """Has a GPU that nobody else is to get: Ray knows no other way to leave one out."""


class Aside:
    """What broke in a run."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_TRIES))
        self._keepers: dict[str, list[Any]] = {}

    @property
    def gpus(self) -> int:
        """How many the run goes on without."""
        return sum(math.floor(n) for node, n in _gpus().items() if node in self._keepers)

    def broke(self, told: str) -> str | None:
        """What is to be said of an error of Ray's, where a device is its cause and the run may go on; None
        where none is. JobFailed where no other node has a GPU."""
        blamed = _BROKEN.search(told) or _GONE.search(told)
        # A GPU that was never seen is a mistake in how the node was set up.
        if blamed is None or (blamed.re is _GONE and not self._failures.get(blamed[2])):
            return None
        failure, node = blamed.groups()
        if node in self._keepers:
            raise JobFailed(f"{failure}; Ray gave it work again though it was left out")
        now, failures = time.monotonic(), self._failures[node]
        failures.append(now)
        if len(failures) < _TRIES or now - failures[0] > _IN_A_ROW_S:
            return f"{failure}; its actors start anew"
        gpus = _gpus()
        if not gpus.keys() - self._keepers.keys() - {node}:
            raise JobFailed(
                f"{failure}; no node with a GPU is left: mend it or take it out, the same command resumes"
            )
        self._take(node, math.floor(gpus.get(node, 0)))
        return f"{failure}; {_TRIES} times in a row, the run goes on without this node's GPUs"

    def _take(self, node: str, gpus: int) -> None:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        keeper = _Keeper.options(num_gpus=1, scheduling_strategy=there)  # type: ignore[attr-defined]
        self._keepers[node] = [keeper.remote() for _ in range(gpus)]
        # A GPU that another job holds is taken when that gives it back.
        up = [taken.__ray_ready__.remote() for taken in self._keepers[node]]
        ray.wait(up, num_returns=len(up), timeout=_TAKEN_S)


def _gpus() -> Mapping[str, float]:
    """Of each node that has some."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {n["NodeID"]: n["Resources"]["GPU"] for n in nodes if n["Resources"].get("GPU")}
