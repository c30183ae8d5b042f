"""One writer per output: a lease with heartbeat, and a fence for writers who lost it.

Leases are numbered objects under `_lease/`, taken by conditional create (S3: If-None-Match), so two
runs that reach for the same number cannot both get it. The highest number rules. A holder rewrites
its object to show that it lives. Who finds one that is not released looks at it for as long as its
time to live, by its own stopwatch: only if nothing changes the next number is taken. No clock of
another machine is believed. A paused holder that wakes up sees a higher number at the fence and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from emolake.pipeline.errors import Damaged, EmolakeError, JobFailed, UserError
from emolake.pipeline.lake.layout import LEASES, Lake
from emolake.pipeline.storage.files import create_exclusively, write_whole

TTL_S = 60.0
_LOOKS = 40  # at a holder, within its time to live


class LeaseLost(EmolakeError):
    """Another run has taken the output over; this one must not write any more."""


@dataclass(frozen=True)
class Holder:
    """What a lease object says. machine, started: where its process runs and when it was started, as
    `_machine` and `_started` tell them; beats: counts up while it lives."""

    run_id: str
    host: str
    machine: str
    pid: int
    started: int
    since: str
    ttl_s: float
    beats: int = 0
    released: bool = False

    @property
    def runs_here(self) -> bool | None:
        """Whether its process is there; None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        there = _started(self.pid)
        return there is not None and there == self.started


@dataclass(frozen=True)
class Fence:
    """A lease's number, to be carried to where writes happen."""

    lake: Lake
    number: int

    def __call__(self) -> None:
        """Raises LeaseLost unless this number still rules."""
        highest, told = _current(self.lake)
        holder = _parsed(told)
        if highest != self.number or holder is None or holder.released:
            raise LeaseLost(f"lease {self.number} on {self.lake.uri} was lost to lease {highest}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Files that go under the feet of whoever has lost the lease are told as that: LeaseLost."""
        try:
            yield
        except FileNotFoundError:
            self()
            raise


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
    def acquire(
        cls,
        lake: Lake,
        run_id: str,
        *,
        ttl_s: float = TTL_S,
        patient: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> Lease:
        """Takes the output; UserError says who holds it and since when. A holder on another machine that
        may be dead is looked at first, for up to its time to live, and `say` is told; not if `patient` is
        false: then it counts as alive."""
        highest, told = _current(lake)
        if told is not None and _in_use(lake, highest, told, patient, say):
            raise UserError(_whose(lake))
        mine = Holder(
            run_id=run_id,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            ttl_s=ttl_s,
        )
        number = highest + 1
        if (
            not create_exclusively(lake.fs, _path(lake, number), _encoded(mine))
            or _current(lake)[0] != number  # this one slept, and its number had been cleared away
        ):
            raise UserError(
                f"{lake.uri} was taken by another run just now; wait for it, or stop it"
            )
        if create_exclusively(lake.fs, _path(lake, number), b"{}"):
            raise UserError(
                f"{lake.uri} lies in a store that writes over what is there though it is asked not to "
                "(If-None-Match): two runs could not be kept apart; choose another store"
            )
        _clear_below(lake, number)
        return cls(lake, number, mine)

    @property
    def fence(self) -> Fence:
        return Fence(self.lake, self.number)

    def renew(self) -> None:
        """Takes the next number: what still carries the fence of this one, such as a task that has outlived
        its stage, writes no more. LeaseLost where another run was faster."""
        if create_exclusively(
            self.lake.fs, _path(self.lake, self.number + 1), _encoded(self._holder)
        ):
            self.number += 1
        self.fence()
        _clear_below(self.lake, self.number)

    def release(self) -> None:
        """Gives the output back; harmless if the lease was lost, or if the output cannot be written
        any more: a holder that has ended is seen to be dead."""
        self._stop.set()
        self._thread.join(timeout=10)
        with suppress(OSError):
            highest, told = _current(self.lake)
            # Who was interrupted while it took the next number may have it all the same.
            holder, mine = _parsed(told), self._holder
            also_mine = holder is not None and replace(holder, beats=0) == replace(mine, beats=0)
            if highest == self.number or also_mine:
                self.number = highest
                self._write(replace(self._holder, released=True))

    def _beat(self) -> None:
        while not self._stop.wait(self._holder.ttl_s / 4):
            self._holder = replace(self._holder, beats=self._holder.beats + 1)
            try:
                self._write(self._holder)
            except Exception:  # noqa: S112 (a missed beat is mended by the next; the fence decides)
                continue

    def _write(self, holder: Holder) -> None:
        write_whole(self.lake.fs, _path(self.lake, self.number), _encoded(holder))


@contextmanager
def holding(lake: Lake, run_id: str) -> Iterator[Fence]:
    """The output is this one's inside. JobFailed for a damaged file, now that work has begun."""
    lease = Lease.acquire(lake, run_id)
    try:
        yield lease.fence
    except Damaged as error:
        raise JobFailed(str(error)) from None
    finally:
        lease.release()


def _in_use(
    lake: Lake, highest: int, told: bytes, patient: bool, say: Callable[[str], None]
) -> bool:
    """Whether the holder of the highest lease lives: at once where its process can be seen or it has
    released the lease, else by whether it beats while we look."""
    holder = _parsed(told)
    if holder is not None and holder.released:
        return False
    if holder is not None and holder.runs_here is not None:
        return holder.runs_here
    if not patient:
        return True
    ttl_s = holder.ttl_s if holder is not None else TTL_S
    say(f"{_whose(lake)}; looking for {ttl_s:g} s whether it still lives")
    end = time.monotonic() + ttl_s
    while time.monotonic() < end:
        time.sleep(ttl_s / _LOOKS)
        number, now = _current(lake)
        if (number, now) != (highest, told):
            there = _parsed(now)
            return number != highest or there is None or not there.released
    return False


def _clear_below(lake: Lake, number: int) -> None:
    lake.remove(_path(lake, old) for old in range(max(number - 8, 0), number))


def _whose(lake: Lake) -> str:
    holder = _parsed(_current(lake)[1])
    if holder is None:
        return f"{lake.uri} is in use by another run"
    return (
        f"{lake.uri} is in use by run {holder.run_id} on {holder.host} since {holder.since}; "
        "wait for it, or stop it"
    )


def _current(lake: Lake) -> tuple[int, bytes | None]:
    """The highest lease's number and what it says; 0 where there was none, None where it went just now."""
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
        return highest, bytes(lake.fs.cat_file(_path(lake, highest)))
    except FileNotFoundError:
        return highest, None


def _parsed(told: bytes | None) -> Holder | None:
    """None for what another version of this program wrote, too."""
    try:
        return Holder(**json.loads(told)) if told is not None else None
    except (ValueError, TypeError):
        return None


def _path(lake: Lake, number: int) -> str:
    return lake.path(LEASES, f"{number:09d}.json")


def _encoded(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _machine() -> str:
    """Names where process ids mean the same: one boot of one machine and one PID namespace of it (a
    container has its own, under the same host name where it shares the network)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since boot (proc(5)), by which one that got the same id later
    is told apart; None if there is none. 0 where the system does not tell."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = stat.rpartition(") ")[2].split()
    return None if state == "Z" else int(fields[18])
