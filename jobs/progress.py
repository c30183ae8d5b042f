"""What a person reads while a run goes on: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from emolake.pipeline.lake.schema import ENDPOINT_USAGE
from emolake.pipeline.storage.traffic import Traffic, ours

_LINE_EVERY_S = 10.0
_SAME_COMMIT_S = 0.2
"""Rows of one commit reach the driver together."""
STAGES = ("faces", "annotate", "write")


@dataclass
class Tally:
    """Running sums over committed segments; `stages` of run.json comes from it."""

    started: float = field(default_factory=time.monotonic)
    segments: int = 0
    tracks: int = 0
    tracks_dropped: int = 0
    windows: int = 0
    video_seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    workers: dict[str, int] = field(default_factory=dict)
    """Actors of the stages that have a pool of their own."""
    videos: set[str] = field(default_factory=set)
    traffic: Counter[str] = field(default_factory=Counter)
    endpoint: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """What each model took of an endpoint; nothing, where it is behind none."""
    driver_before: Traffic = field(default_factory=ours)
    """The driver's own traffic counts from here."""
    first_s: float | None = None
    """When the first segment was committed, seconds from `started`."""
    first_busy_s: float = 0.0
    """What the face stage had spent on the segments of that commit."""
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    """What the run kept from others, busy or not."""

    def add(self, row: dict[str, Any]) -> None:
        """row: schema.COMMITTED_ROW."""
        if self.first_s is None:
            self.first_s = self.elapsed
        if self.elapsed - self.first_s < _SAME_COMMIT_S:
            self.first_busy_s += row["face_seconds"]
        self.segments += 1
        for name in ("bytes_read", "bytes_written", "requests"):
            self.traffic[name] += row[name]
        for spent in row["spent"] or ():
            self.endpoint[spent["model"]].update({name: spent[name] for name in ENDPOINT_USAGE})
        self.tracks += row["n_tracks"]
        self.tracks_dropped += row["n_dropped_tracks"]
        self.windows += row["n_windows"]
        self.video_seconds += row["video_seconds"]
        self.states[row["state"]] += 1
        self.videos.add(row["video_id"])
        for stage, seconds in zip(
            STAGES, ("face_seconds", "annotate_seconds", "write_seconds"), strict=True
        ):
            self.busy[stage] += row[seconds]

    @property
    def start_s(self) -> float | None:
        """About when the first segment was begun, seconds from `started`: Ray and the actors were up."""
        if self.first_s is None:
            return None
        return max(self.first_s - self.first_busy_s / self.workers.get("faces", 1), 0.0)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def stages(self) -> dict[str, dict[str, float]]:
        """Per stage: rows, busy seconds (summed over its workers), rows per busy second, workers, and
        the part of the time since the start in which a worker was busy (of one, for a stage without
        a pool)."""
        rows = {"faces": self.segments, "annotate": self.windows, "write": self.segments}
        told = {}
        for stage in STAGES:
            busy, workers = self.busy[stage], self.workers.get(stage, 1)
            told[stage] = {
                "rows": rows[stage],
                "busy_seconds": round(busy, 3),
                "rows_per_busy_second": round(rows[stage] / max(busy, 1e-9), 2),
                "workers": workers,
                "busy_fraction": round(busy / max(self.elapsed * workers, 1e-9), 6),
            }
        return told


class Progress:
    """Shows a Tally as it grows, on standard error; `quiet` shows nothing."""

    def __init__(self, total_videos: int, *, quiet: bool) -> None:
        self.tally = Tally()
        self.total = total_videos
        self.quiet = quiet
        self._console = Console(stderr=True, markup=False)
        self._live: Live | None = None
        self._told = 0.0

    def __enter__(self) -> Progress:
        if not self.quiet and self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()

    def add(self, row: dict[str, Any]) -> None:
        self.tally.add(row)
        if self._live is not None:
            self._live.update(self._table())
        elif not self.quiet and self.tally.elapsed - self._told >= _LINE_EVERY_S:
            self._told = self.tally.elapsed
            print(self._line(), file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """A line of its own, terminal or not."""
        if not self.quiet:
            self._console.print(message, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        tally = self.tally
        rate = tally.video_seconds / max(tally.elapsed, 1e-9)
        pace = tally.segments / max(tally.elapsed, 1e-9)
        busy = ", ".join(
            f"{stage} {100 * told['busy_fraction']:.0f} %"
            for stage, told in tally.stages().items()
            if stage in tally.workers
        )
        return (
            f"{tally.elapsed:6.0f} s  videos {len(tally.videos)}/{self.total}  "
            f"segments {tally.segments} ({pace:.2f}/s)  failed {tally.states['failed']}  "
            f"faces {tally.tracks}  windows {tally.windows}  {rate:.1f} video-seconds/s"
            f"{f'  busy: {busy}' if busy else ''}{self._left()}"
        )

    def _left(self) -> str:
        """How long the rest will take if it goes on like this; nothing while too little is known."""
        done = len(self.tally.videos)
        if not done or done >= self.total or self.tally.elapsed < _LINE_EVERY_S:
            return ""
        seconds = self.tally.elapsed / done * (self.total - done)
        hours, rest = divmod(round(seconds), 3600)
        return f"  about {hours}:{rest // 60:02}:{rest % 60:02} left"

    def _table(self) -> Group:
        tally = self.tally
        table = Table.grid(padding=(0, 2))
        table.add_row("[bold]videos[/]", f"{len(tally.videos)}/{self.total}", self._bar(), "")
        for stage, told in tally.stages().items():
            busy = told["busy_seconds"]
            table.add_row(
                f"[bold]{stage}[/]",
                f"{told['rows']:.0f}",
                f"{busy:.1f} s busy, {100 * told['busy_fraction']:.0f} % of {told['workers']:.0f}",
                f"{told['rows_per_busy_second']:.1f}/s",
            )
        return Group(table, Text(self._line().strip(), style="dim"))

    def _bar(self) -> str:
        width = 32
        filled = round(width * len(self.tally.videos) / max(self.total, 1))
        return f"[green]{'━' * filled}[/][dim]{'━' * (width - filled)}[/]"
