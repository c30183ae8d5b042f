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
_TAKEN_S = 60.0  # Ray lets an actor that it ends have half of that
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
        where none is. GPUs are left out from the next `take` on. JobFailed where no other node has one."""
        blamed = _BROKEN.search(told) or _GONE.search(told)
        # A GPU that was never seen is a mistake in how the node was set up.
        if blamed is None or (blamed.re is _GONE and not self._failures.get(blamed[2])):
            return None
        failure, node = blamed.groups()
        if node in self._keepers:
            raise JobFailed(f"{failure}; Ray gave it work again though it was left out")
        now, failures = time.monotonic(), self._failures[node]
        if failures and now - failures[-1] > _IN_A_ROW_S:
            failures.clear()
        failures.append(now)
        if len(failures) < _TRIES:
            return f"{failure}; its actors start anew"
        gpus = _gpus()
        if not gpus.keys() - self._keepers.keys() - {node}:
            raise JobFailed(
                f"{failure}; no node with a GPU is left: mend it or take it out, the same command resumes"
            )
        self._keepers[node] = []
        return f"{failure}; {_TRIES} times in a row, the run goes on without this node's GPUs"

    def take(self) -> None:
        """Takes the GPUs of the nodes that are left out, as soon as the ended graph's actors are gone from
        there."""
        for node, keepers in self._keepers.items():
            if not keepers:
                keepers += _taken(node, math.floor(_gpus().get(node, 0)))


def _taken(node: str, gpus: int) -> list[Any]:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    keeper = _Keeper.options(num_gpus=1, scheduling_strategy=there)  # type: ignore[attr-defined]
    keepers = [keeper.remote() for _ in range(gpus)]
    # A GPU that another job holds is taken when that gives it back.
    up = [keeper.__ray_ready__.remote() for keeper in keepers]
    if up:
        ray.wait(up, num_returns=len(up), timeout=_TAKEN_S)
    return keepers


def _gpus() -> Mapping[str, float]:
    """Of each node that has some."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {n["NodeID"]: n["Resources"]["GPU"] for n in nodes if n["Resources"].get("GPU")}
