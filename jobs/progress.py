"""What a person reads while a run goes on: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from emolake.pipeline.corpus.planning import known_sizes
from emolake.pipeline.lake.schema import ENDPOINT_USAGE
from emolake.pipeline.storage.traffic import Traffic, ours

_LINE_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0
_SMALL_VIDEOS = 16
_BYTES_A_SEGMENT = 8_000_000  # five minutes of a fifth of a megabit, or fewer at more
_STDERR = 2
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
    untold: Counter[str] = field(default_factory=Counter)
    """Segments and windows that the ledger alone tells of."""
    states: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    workers: dict[str, int] = field(default_factory=dict)
    """Actors of the stages that have a pool of their own."""
    videos: set[str] = field(default_factory=set)
    videos_done: float = 0.0
    bytes_done: float = 0.0
    """Of each video the share of its segments that are committed; its bytes by the same share."""
    traffic: Counter[str] = field(default_factory=Counter)
    endpoint: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """What each model took of an endpoint; nothing, where it is behind none."""
    driver_before: Traffic = field(default_factory=ours)
    """The driver's own traffic counts from here."""
    first_s: float | None = None
    """When the first segment was committed, seconds from `started`."""
    first_busy_s: float = 0.0
    """What the face stage had spent on the segments of that commit."""
    first_workers: int = 1
    """Face actors there were then."""
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    """What the run kept from others, busy or not."""

    def add(self, row: dict[str, Any]) -> None:
        """row: schema.COMMITTED_ROW."""
        if self.first_s is None:
            self.first_s = self.elapsed
            self.first_workers = self.workers.get("faces", 1)
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
        self.videos_done += 1 / row["n_segments"]
        self.bytes_done += (row["size"] or 0) / row["n_segments"]
        for stage, seconds in zip(
            STAGES, ("face_seconds", "annotate_seconds", "write_seconds"), strict=True
        ):
            self.busy[stage] += row[seconds]

    def told_by(self, ledger: Iterable[pa.Table]) -> None:
        """Counts anew what the ledger tells of the run: of what was committed last, before its stages ended
        too early, no row of COMMITTED_ROW has come. What took how long, and what it cost, is not known of
        those."""
        heard = self.segments - self.untold["segments"], self.windows - self.untold["windows"]
        self.segments = self.tracks = self.windows = 0
        self.states.clear()
        for rows in ledger:
            self.segments += rows.num_rows
            self.tracks += pc.sum(rows["n_tracks"]).as_py() or 0
            self.windows += pc.sum(rows["n_windows"]).as_py() or 0
            self.states.update(rows["state"].to_pylist())
        self.untold = Counter(segments=self.segments - heard[0], windows=self.windows - heard[1])

    @property
    def start_s(self) -> float | None:
        """About when the first segment was begun, seconds from `started`: Ray and the actors were up."""
        if self.first_s is None:
            return None
        return max(self.first_s - self.first_busy_s / self.first_workers, 0.0)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def stages(self) -> dict[str, dict[str, float]]:
        """Per stage: rows, busy seconds (summed over its workers), rows per busy second, workers, and
        the part of the time since the start in which a worker was busy (of one, for a stage without
        a pool)."""
        segments = self.segments - self.untold["segments"]
        windows = self.windows - self.untold["windows"]
        rows = {"faces": segments, "annotate": windows, "write": segments}
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


class Expected:
    """What a run has to do, as far as it is known before: bytes where all sizes are, else videos."""

    def __init__(self, todo: Iterable[pa.Table] = ()) -> None:
        """todo: rows of schema.VIDEO_ROW."""
        self.videos, self.all_sized = 0, True
        self._bytes, self._whole_videos = 0.0, 0.0
        for part in todo:
            wanted = pc.divide(
                pc.cast(pc.list_value_length(part["segments"]), pa.float64()), part["n_segments"]
            )
            shares = pc.fill_null(wanted, 1.0)
            self.videos += part.num_rows
            sizes = known_sizes(part)
            self.all_sized &= not sizes.null_count
            self._bytes += pc.sum(pc.multiply(shares, sizes)).as_py() or 0.0
            self._whole_videos += pc.sum(shares).as_py() or 0.0

    @property
    def segments(self) -> int | None:
        """About how many, where all sizes are known, each worth the seconds in which an actor for it starts;
        small videos share one."""
        if not self.all_sized:
            return None
        return -(-self.videos // _SMALL_VIDEOS) + int(self._bytes // _BYTES_A_SEGMENT)

    def done(self, tally: Tally) -> float:
        """The part that is done, 0 to 1."""
        if self.all_sized and self._bytes:
            return min(tally.bytes_done / self._bytes, 1.0)
        return min(tally.videos_done / max(self._whole_videos, 1e-9), 1.0)


class Progress:
    """Shows a Tally as it grows, on standard error; `quiet` shows nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self.tally = Tally()
        self.expected = Expected()
        self.quiet = quiet
        self._stream = sys.stderr if quiet else _own_stderr()
        self._console = Console(file=self._stream, markup=False)
        self._live: Live | None = None
        self._began = time.monotonic()
        self._waits_for = ""
        self._told_from = self._told_at = self._began
        self._left = threading.Event()
        self._teller: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self.quiet:
            return self
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=4
            )
            self._live.start()
        else:
            self._teller = threading.Thread(target=self._tell, daemon=True)
            self._teller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        if self._teller is not None:
            self._teller.join(_LOOK_EVERY_S)  # it writes to what is closed below
        if kind is None:
            self._waits_for = ""
        if self._live is not None:
            self._live.transient = not self.tally.segments  # nothing to look at
            self._live.stop()
        if self._stream is not sys.stderr:
            self._stream.close()
            self._stream = sys.stderr
            self._console.file = sys.stderr

    def add(self, row: dict[str, Any]) -> None:
        self._waits_for = ""
        self.tally.add(row)

    def say(self, message: str) -> None:
        """A line of its own, terminal or not."""
        if not self.quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """The same, for what is to be heard of a quiet run too."""
        self._console.print(message, highlight=False, soft_wrap=True)

    def waits_for(self, what: str, *, soon: bool = True) -> None:
        """What goes on until the next call or the first segment; told where it takes its time, and not soon
        where it may end in a mistake, which is to be one line."""
        self._waits_for = what
        self._told_from = time.monotonic() + (_LOOK_EVERY_S if soon else _LINE_EVERY_S)

    def _tell(self) -> None:
        """Where no terminal redraws it: a line for whatever takes a second, and then every ten."""
        told = ""
        while not self._left.wait(_LOOK_EVERY_S):
            now, what = time.monotonic(), self._waits_for
            new = what and what != told and now >= self._told_from
            if new or now - self._told_at >= _LINE_EVERY_S:
                told, self._told_at = what, now
                print(self._line(), file=self._stream, flush=True)

    def _line(self) -> str:
        tally = self.tally
        if self._waits_for:
            return f"{time.monotonic() - self._began:6.0f} s  {self._waits_for}"
        since = max(tally.elapsed - (tally.start_s or 0.0), 1e-9)
        rate, pace = tally.video_seconds / since, tally.segments / since
        busy = ", ".join(
            f"{stage} {100 * told['busy_fraction']:.0f} %"
            for stage, told in tally.stages().items()
            if stage in tally.workers
        )
        return (
            f"{time.monotonic() - self._began:6.0f} s  videos {len(tally.videos)}/{self.expected.videos}  "
            f"segments {tally.segments} ({pace:.2f}/s)  failed {tally.states['failed']}  "
            f"faces {tally.tracks}  windows {tally.windows}  {rate:.1f} video-seconds/s"
            f"{f'  busy: {busy}' if busy else ''}{self._time_left()}"
        )

    def _time_left(self) -> str:
        """Nothing while too little is known."""
        seconds = self.seconds_left
        if seconds is None or self.tally.elapsed < _LINE_EVERY_S:
            return ""
        hours, rest = divmod(round(seconds), 3600)
        return f"  about {hours}:{rest // 60:02}:{rest % 60:02} left"

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes if it goes on as it has since the first segment was begun."""
        done, begun = self.expected.done(self.tally), self.tally.start_s
        if begun is None or not 0 < done < 1:
            return None
        return (self.tally.elapsed - begun) * (1 - done) / done

    def _table(self) -> Group:
        tally = self.tally
        if not tally.segments:
            return Group(Text(self._line().strip(), style="dim"))
        table = Table.grid(padding=(0, 2))
        videos = f"{len(tally.videos)}/{self.expected.videos}"
        table.add_row(Text("videos", style="bold"), videos, self._bar(), "")
        for stage, told in tally.stages().items():
            busy = told["busy_seconds"]
            table.add_row(
                Text(stage, style="bold"),
                f"{told['rows']:.0f}",
                f"{busy:.1f} s busy, {100 * told['busy_fraction']:.0f} % of {told['workers']:.0f}",
                f"{told['rows_per_busy_second']:.1f}/s",
            )
        return Group(table, Text(self._line().strip(), style="dim"))

    def _bar(self) -> Text:
        width = 32
        filled = round(width * self.expected.done(self.tally))
        return Text.assemble(("━" * filled, "green"), ("━" * (width - filled), "dim"))


def _own_stderr() -> TextIO:
    """Standard error, by a way of its own: what is told while Ray starts must not wait until others' words,
    which are held back meanwhile, come out."""
    try:
        if sys.stderr.fileno() == _STDERR:
            return os.fdopen(
                os.dup(_STDERR), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors
            )
    except (OSError, ValueError):  # it is closed, or no file
        pass
    return sys.stderr
