"""A Ray on this machine whose object store is watched while a job runs on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_EVERY_S = 0.5


@dataclass
class Watched:
    """Peaks until now. address: what RAY_ADDRESS names; stored_mb: in all stores, spilled objects too;
    blocks: objects there at once, which is what waits between stages or is worked on."""

    address: str
    stored_mb: float = 0.0
    blocks: int = 0

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"RAY_ADDRESS": self.address}


@contextmanager
def watched_ray(num_cpus: int, store_mb: int) -> Iterator[Watched]:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    ray.init(
        address="local", num_cpus=num_cpus, object_store_memory=store_mb << 20,
        include_dashboard=False, log_to_driver=False,
    )  # fmt: skip
    seen = Watched(ray.get_runtime_context().gcs_address)
    over = threading.Event()

    def watch() -> None:
        state = get_state_from_address(seen.address)
        while not over.wait(_EVERY_S):
            told = get_memory_info_reply(state).store_stats
            held = told.object_store_bytes_used + told.spilled_bytes_total
            seen.stored_mb = max(seen.stored_mb, held / (1 << 20))
            seen.blocks = max(seen.blocks, told.num_local_objects)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join(5)
        ray.shutdown()
