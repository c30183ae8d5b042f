"""What a benchmark says, and the clock it uses."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "emolake.jobs")
"""The command line, in a process of its own."""


@dataclass(frozen=True)
class Measurement:
    """ours and peer in `unit`; ratio says how many times better ours is; least is what it has to
    reach."""

    name: str
    ours: float
    peer: float
    ratio: float
    unit: str
    least: float

    @property
    def ok(self) -> bool:
        return self.ratio >= self.least

    def row(self) -> dict[str, Any]:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return rounded | {"ok": self.ok}


def more_is_better(name: str, ours: float, peer: float, unit: str, least: float) -> Measurement:
    return Measurement(name, ours, peer, ours / max(peer, 1e-9), unit, least)


def less_is_better(name: str, ours: float, peer: float, unit: str, least: float) -> Measurement:
    return Measurement(name, ours, peer, peer / max(ours, 1e-9), unit, least)


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process (Linux, proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    told = next(line for line in lines if line.startswith("VmHWM:"))
    return int(told.split()[1]) / 1024


@contextmanager
def timed(spent: dict[str, float], name: str) -> Iterator[None]:
    """Adds the time of a block to `spent[name]`."""
    started = time.monotonic()
    yield
    spent[name] = spent.get(name, 0.0) + time.monotonic() - started
