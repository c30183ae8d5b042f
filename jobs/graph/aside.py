"""GPUs that break: each gets two more tries, and then a run goes on without it, or without all of its node's
where a second one breaks there."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emolake.pipeline.errors import JobFailed

_TRIES = 3
_OF_A_NODE = 2 * _TRIES
_IN_A_ROW_S = 3600.0  # a device that broke so long ago has worked since
_TAKEN_S = 60.0  # Ray lets an actor that it ends have half of that
_WHERE = r"\S+ \(node (\w+)(?:, GPU ([^)]+))?\)"
_BROKEN = re.compile(rf"errors\.DeviceFailed: (the device of {_WHERE} failed: .+)")
_GONE = re.compile(rf"errors\.JobFailed: (Ray granted a GPU on {_WHERE} and torch sees none there)")

ALL = "all"
"""Of a node's GPUs; else the one that a failure names, or those of an actor that has several, as `0,1`."""


@ray.remote(num_cpus=0)
class _Keeper:
    """Has a GPU that nobody else is to get: Ray knows no other way to leave one out."""

    def has(self) -> str:
        """Which."""
        return str(ray.get_gpu_ids()[0])


class Aside:
    """What broke in a run."""

    def __init__(self) -> None:
        self._failures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._out: dict[str, set[str]] = {}
        self._keepers: dict[str, list[Any]] = {}

    @property
    def gpus(self) -> int:
        """How many the run goes on without."""
        return sum(self._out_of(node, math.floor(n)) for node, n in _gpus().items())

    def _out_of(self, node: str, gpus: int) -> int:
        out = self._out.get(node, set())
        return gpus if ALL in out else min(gpus, sum(len(gpu.split(",")) for gpu in out))

    def broke(self, told: str) -> str | None:
        """What is to be said of an error of Ray's, where a device is its cause and the run may go on; None
        where none is. GPUs are left out from the next `take` on. JobFailed where no other is left."""
        blamed = _BROKEN.search(told) or _GONE.search(told)
        # A GPU that was never seen is a mistake in how the node was set up.
        if blamed is None or (blamed.re is _GONE and not self._failures.get(blamed[2])):
            return None
        failure, node, gpu = blamed[1], blamed[2], blamed[3] or ALL
        out = self._out.setdefault(node, set())
        if out & {gpu, ALL}:
            raise JobFailed(f"{failure}; Ray gave it work again though it was left out")
        now, of_node = time.monotonic(), self._failures[node]
        if of_node[gpu] and now - of_node[gpu][-1] > _IN_A_ROW_S:
            of_node[gpu].clear()
        of_node[gpu].append(now)
        whole = sum(len(t) for t in of_node.values() if now - t[-1] <= _IN_A_ROW_S) >= _OF_A_NODE
        if len(of_node[gpu]) < _TRIES and not whole:
            return f"{failure}; its actors start anew"
        out.add(ALL if whole else gpu)
        if self.gpus >= sum(map(math.floor, _gpus().values())):
            raise JobFailed(
                f"{failure}; no GPU is left: mend it or take it out, the same command resumes"
            )
        left_out = "this node's GPUs" if ALL in out else "this GPU"
        often = f"{_TRIES} times in a row" if len(of_node[gpu]) >= _TRIES else "as others there"
        return f"{failure}; {often}, the run goes on without {left_out}"

    def take(self) -> None:
        """Takes the GPUs that are left out, as soon as the ended graph's actors are gone from there."""
        for node, out in self._out.items():
            there, held = math.floor(_gpus().get(node, 0)), self._keepers.setdefault(node, [])
            if out and len(held) < self._out_of(node, there):
                held += _taken(node, there - len(held), out)


def _taken(node: str, gpus: int, wanted: set[str]) -> list[Any]:
    """Of a node's GPUs, which Ray gives out as it likes, all are asked for, and the others given back."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    keeper = _Keeper.options(num_gpus=1, scheduling_strategy=there)  # type: ignore[attr-defined]
    keepers = [keeper.remote() for _ in range(gpus)]
    has = [keeper.has.remote() for keeper in keepers]
    up, pending = ray.wait(has, num_returns=gpus, timeout=_TAKEN_S)
    if ALL in wanted:
        return keepers
    ids = {gpu for some in wanted for gpu in some.split(",")}
    # One that another job holds, or an actor that dies slowly, is taken when that gives it back.
    kept = [which for which in up if _told(which) in ids] or pending
    for one, which in zip(keepers, has, strict=True):
        if which not in kept:
            ray.kill(one)
    return [one for one, which in zip(keepers, has, strict=True) if which in kept]


def _told(which: Any) -> str | None:
    try:
        return str(ray.get(which))
    except ray.exceptions.RayError:  # its node has gone
        return None


def _gpus() -> Mapping[str, float]:
    """Of each node that has some."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {n["NodeID"]: n["Resources"]["GPU"] for n in nodes if n["Resources"].get("GPU")}
