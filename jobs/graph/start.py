"""Joins a Ray cluster, or starts a Ray for one run on this machine."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private import ray_constants

from emolake.jobs.graph.nodes import check_nodes
from emolake.jobs.graph.pools import cpus_wanted
from emolake.pipeline.config import ResourcesConfig

_OF_EVERY_WORKER = "emolake.jobs.graph.flow"


def start_ray(resources: ResourcesConfig) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts a Ray on this machine without dashboard."""
    # Ray's core logs warnings about its own actors to standard error; failures reach us as errors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    # What the driver needs next takes as long to import as Ray takes to come up.
    with ThreadPoolExecutor(1) as beside:
        graph = beside.submit(importlib.import_module, _OF_EVERY_WORKER)
        if os.environ.get("RAY_ADDRESS"):
            # Code that is sent along is unpacked as the run joins, once a node, and where nodes share a disk
            # in one place: nothing can be imported from it meanwhile.
            graph.result()
            ray.init(**quiet)
            check_nodes()
        else:
            _start_own(resources, quiet)
        graph.result()
    if not os.environ.get("RAY_ADDRESS"):
        _left_out.enter_context(_without(_OF_DATA))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _start_own(resources: ResourcesConfig, quiet: dict[str, Any]) -> None:
    # Workers load numpy before Ray tells them how many threads are theirs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with _on_loopback(), _without(_OF_A_NODE), _without_its_first_word():
        ray.init(
            address="local",  # and not whatever cluster happens to run on this machine
            num_cpus=cpus_wanted(resources),
            object_store_memory=resources.object_store_mb * 1024 * 1024,
            include_dashboard=False,
            # Its workers start at once and import what all of them need, while it comes up.
            _system_config={"preload_python_modules": [_OF_EVERY_WORKER]},
            **quiet,
        )


def stop_ray() -> None:
    """Leaves the cluster, or ends the Ray that was started here."""
    try:
        ray.shutdown()
    finally:
        _left_out.close()


@contextmanager
def _without_its_first_word() -> Iterator[None]:
    """Ray's core says on standard error which level of logging it was given, before it heeds it; whatever
    else is said there meanwhile comes when Ray is up, or is not."""
    sys.stderr.flush()
    ours = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(ours, 2)
            os.close(ours)
            said.seek(0)
            os.write(2, b"".join(line for line in said if b"Set ray log level from" not in line))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray started within listens on 127.0.0.1 alone, as it does by itself on Windows and macOS; for
    Linux its one switch is read when it is imported."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


_Swap = tuple[str, str, Callable[[Any], Any]]
"""Where of Ray something is, its name there, and what is put in its place."""

# A Ray of one run on one machine starts seven processes that serve clusters and dashboards; each is an
# interpreter with its imports, on the cores that the run waits for. Ray has no switch for them.


def _nothing(*_: Any, **__: Any) -> None:
    pass


class _NoTracker:
    """Of where actors are: there is one place. It travels to them, as the handle of Ray's own does."""

    class _NoMethod:
        def remote(self, *_: Any) -> None:
            pass

    update_actor_location = _NoMethod()


class _NoAutoscaler:
    """This machine does not grow."""

    def __init__(self, *_: Any, **__: Any) -> None:
        from ray.data import ExecutionResources

        self._total = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        pass

    def on_executor_shutdown(self) -> None:
        pass

    def get_total_resources(self) -> Any:
        return self._total


_OF_A_NODE: tuple[_Swap, ...] = (
    (
        "ray._private.parameter",
        "RayParams",
        lambda theirs: functools.partial(theirs, no_monitor=True, include_log_monitor=False),
    ),
    ("ray._private.node:Node", "start_api_server", lambda _: _nothing),
    # The agents beside the raylet keep to what they do where Ray's dashboard is not installed.
    (
        "ray._private.utils",
        "get_dashboard_dependency_error",
        lambda _: lambda: ImportError("unused"),
    ),
)
_STATS = "ray.data._internal.stats:_StatsManager"
_EXECUTION = "ray.data._internal.execution"
_ACTOR_POOL = f"{_EXECUTION}.operators.actor_pool_map_operator"
_OF_DATA: tuple[_Swap, ...] = (
    (_STATS, "register_dataset_to_stats_actor", lambda _: _nothing),
    (_STATS, "update_execution_metrics", lambda _: _nothing),
    (_STATS, "update_iteration_metrics", lambda _: _nothing),
    (f"{_EXECUTION}.streaming_executor", "create_cluster_autoscaler", lambda _: _NoAutoscaler),
    (_ACTOR_POOL, "get_or_create_actor_location_tracker", lambda _: _NoTracker),
    (_ACTOR_POOL, "get_actor_locations", lambda _: lambda _: {}),
)


@contextmanager
def _without(swaps: tuple[_Swap, ...]) -> Iterator[None]:
    """Within, Ray has the one for the other; a Ray that has other names keeps what it has."""
    try:
        places = [(pkgutil.resolve_name(place), name, instead) for place, name, instead in swaps]
        theirs = [vars(place)[name] for place, name, _ in places]
    except (ImportError, AttributeError, KeyError):
        places, theirs = [], []
    try:
        for (place, name, instead), before in zip(places, theirs, strict=True):
            setattr(place, name, instead(before))
        yield
    finally:
        for (place, name, _), before in zip(places, theirs, strict=True):
            setattr(place, name, before)


_left_out = ExitStack()
"""What stays left out while the Ray of this process runs."""
