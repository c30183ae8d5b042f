"""One writer per output: a lease with heartbeat, and a fence for writers who lost it.

Leases are numbered objects under `_lease/`, taken by conditional create (S3: If-None-Match), so two
runs that reach for the same number cannot both get it. The highest number rules. A holder rewrites
its object to show that it lives; when it has not for longer than its time to live, the next number
may be taken. A paused holder that wakes up sees a higher number at the fence and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from emolake.pipeline.errors import EmolakeError, UserError
from emolake.pipeline.lake.layout import LEASES, Lake
from emolake.pipeline.storage.files import create_exclusively, write_whole

TTL_S = 60.0


class LeaseLost(EmolakeError):
    """Another run has taken the output over; this one must not write any more."""


@dataclass(frozen=True)
class Holder:
    """What a lease object says."""

    run_id: str
    host: str
    pid: int
    since: str
    beat: float
    ttl_s: float
    released: bool = False

    def alive(self, now: float) -> bool:
        if self.released or now - self.beat > self.ttl_s:
            return False
        return not (self.host == socket.gethostname() and not _process_exists(self.pid))


@dataclass(frozen=True)
class Fence:
    """A lease's number, to be carried to where writes happen."""

    lake: Lake
    number: int

    def __call__(self) -> None:
        """Raises LeaseLost unless this number still rules."""
        highest, holder = _current(self.lake)
        if highest != self.number or holder is None or holder.released:
            raise LeaseLost(f"lease {self.number} on {self.lake.uri} was lost to lease {highest}")


class Lease:
    """Holds the output from `acquire` to `release`; beats in a thread."""

    def __init__(self, lake: Lake, number: int, holder: Holder) -> None:
        self.lake = lake
        self.number = number
        self._holder = holder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, lake: Lake, run_id: str, ttl_s: float = TTL_S) -> Lease:
        """Takes the output; UserError says who holds it and since when."""
        now = time.time()
        highest, holder = _current(lake)
        if holder is not None and holder.alive(now):
            raise UserError(
                f"{lake.uri} is in use by run {holder.run_id} on {holder.host} since {holder.since}; "
                "wait for it, or stop it"
            )
        since = datetime.now(UTC).isoformat(timespec="seconds")
        mine = Holder(run_id, socket.gethostname(), os.getpid(), since, now, ttl_s)
        number = highest + 1
        if not create_exclusively(lake.fs, _path(lake, number), _encoded(mine)):
            raise UserError(
                f"{lake.uri} was taken by another run just now; wait for it, or stop it"
            )
        for old in range(max(number - 8, 0), number):
            lake.remove(_path(lake, old))
        return cls(lake, number, mine)

    @property
    def fence(self) -> Fence:
        return Fence(self.lake, self.number)

    def release(self) -> None:
        """Gives the output back; harmless if the lease was lost, or if the output cannot be written
        any more: a holder that has ended is seen to be dead."""
        self._stop.set()
        self._thread.join(timeout=10)
        with suppress(OSError):
            highest, _ = _current(self.lake)
            if highest == self.number:
                self._write(replace(self._holder, released=True))

    def _beat(self) -> None:
        while not self._stop.wait(self._holder.ttl_s / 4):
            try:
                self._write(replace(self._holder, beat=time.time()))
            except Exception:  # noqa: S112 (a missed beat is mended by the next; the fence decides)
                continue

    def _write(self, holder: Holder) -> None:
        write_whole(self.lake.fs, _path(self.lake, self.number), _encoded(holder))


def _current(lake: Lake) -> tuple[int, Holder | None]:
    lake.fs.invalidate_cache()
    try:
        paths = lake.fs.ls(lake.path(LEASES), detail=False)
    except FileNotFoundError:
        return 0, None
    numbers = [int(n) for p in paths if (n := p.rpartition("/")[2].removesuffix(".json")).isdigit()]
    if not numbers:
        return 0, None
    highest = max(numbers)
    try:
        told = json.loads(lake.fs.cat_file(_path(lake, highest)))
        return highest, Holder(**told)
    except (FileNotFoundError, ValueError, TypeError):
        return highest, None


def _path(lake: Lake, number: int) -> str:
    return lake.path(LEASES, f"{number:09d}.json")


def _encoded(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
