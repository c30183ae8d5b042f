"""Whether every node of a cluster can do the work, asked before any work starts."""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emolake.pipeline.errors import UserError

_SLIVER = 0.001  # of a CPU: the question must not wait for a free one
_TIMEOUT_S = 120.0


def check_nodes() -> None:
    """UserError names the first node that has no emolake, or another version of it."""
    ours = _installed()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    asked = {node["NodeManagerHostname"]: _asked(node["NodeID"]) for node in nodes}
    for host, answer in asked.items():
        try:
            theirs = ray.get(answer, timeout=_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            raise UserError(f"node {host} of the cluster does not answer") from None
        if theirs is None:
            raise UserError(
                f"node {host} of the cluster has no emolake; install it there, use an image that has it, "
                "or send it along with --working-dir"
            )
        if theirs != ours:
            raise UserError(f"node {host} of the cluster has emolake {theirs}, this one has {ours}")


def _asked(node_id: str) -> Any:
    # By value to the node, which may not have this module to import it from.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        question = ray.remote(_installed).options(num_cpus=_SLIVER, scheduling_strategy=there)
        return question.remote()
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _installed() -> str | None:
    """The version of emolake here, `source` for a working directory, None where there is none."""
    import importlib.util
    from importlib.metadata import PackageNotFoundError, version

    if importlib.util.find_spec("emolake") is None:
        return None
    try:
        return version("emolake")
    except PackageNotFoundError:
        return "source"
