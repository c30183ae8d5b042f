"""Reading the ledger: which segment rows count, and the one state of each video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lake.layout import LEDGER, Lake
from pipeline.schema import VIDEOS

_ORDER = ("finished_at", "commit_id")


@dataclass(frozen=True)
class Ledger:
    """rows: every committed ledger row (schema.VIDEOS plus corpus, date, path and `live`).

    A row is live if it is the newest of its (video_id, segment) and belongs to the newest whole
    version of its uri: when an object has changed, or was cut into other segments, the new version
    counts once all its segments are there.
    """

    rows: pa.Table

    @property
    def live(self) -> pa.Table:
        return self.rows.filter(self.rows["live"])

    @property
    def stale(self) -> pa.Table:
        return self.rows.filter(pc.invert(self.rows["live"]))


def read_ledger(lake: Lake) -> Ledger:
    """Reads all ledger files of the output."""
    parts = []
    for file in lake.files(LEDGER):
        table = lake.read_table(file)
        for name in ("corpus", "date", "path"):
            column = pa.array([getattr(file, name)] * table.num_rows, pa.string())
            table = table.append_column(name, column)
        parts.append(table)
    if not parts:
        empty = [pa.field(n, pa.string()) for n in ("corpus", "date", "path")] + [
            pa.field("live", pa.bool_())
        ]
        return Ledger(pa.schema([*VIDEOS, *empty]).empty_table())
    rows = pa.concat_tables(parts).sort_by([(name, "ascending") for name in _ORDER])
    return Ledger(rows.append_column("live", _live(rows)))


def _live(rows: pa.Table) -> pa.Array:
    """Mask over rows that stand in time order."""
    order = pa.array(range(rows.num_rows), pa.int64())
    slim = rows.select(["video_id", "uri", "segment", "n_segments"]).append_column("at", order)
    # Newest row of each segment of each version (a version: one object cut one way).
    version = ["uri", "video_id", "n_segments"]
    newest = slim.group_by([*version, "segment"]).aggregate([("at", "max")])
    versions = newest.group_by(version).aggregate([("segment", "count"), ("at_max", "max")])
    whole = pc.equal(versions["segment_count"], pc.cast(versions["n_segments"], pa.int64()))
    latest = versions.append_column("whole", whole).sort_by(
        [("whole", "descending"), ("at_max_max", "descending")]
    )
    chosen: dict[str, tuple[str, int]] = {}
    for uri, video_id, count in zip(*(latest[name].to_pylist() for name in version), strict=True):
        chosen.setdefault(uri, (video_id, count))
    live_at = [
        at
        for uri, video_id, count, at in zip(
            *(newest[name].to_pylist() for name in (*version, "at_max")), strict=True
        )
        if chosen[uri] == (video_id, count)
    ]
    return pc.is_in(order, pa.array(live_at, pa.int64()))


def newest_versions(rows: pa.Table) -> pa.Table:
    """Per video_id, the newest row of each segment of its newest cut into segments, whole or not:
    what a run that goes on from here must not do again."""
    order = pa.array(range(rows.num_rows), pa.int64())
    slim = rows.select(["video_id", "segment", "n_segments"]).append_column("at", order)
    newest = slim.group_by(["video_id", "n_segments", "segment"]).aggregate([("at", "max")])
    latest: dict[str, tuple[int, int]] = {}
    columns = (newest[name].to_pylist() for name in ("video_id", "n_segments", "at_max"))
    for video_id, count, at in zip(*columns, strict=True):
        latest[video_id] = max(latest.get(video_id, (-1, -1)), (at, count))
    keep = [
        at
        for video_id, count, at in zip(
            *(newest[name].to_pylist() for name in ("video_id", "n_segments", "at_max")),
            strict=True,
        )
        if latest[video_id][1] == count
    ]
    return rows.filter(pc.is_in(order, pa.array(keep, pa.int64())))


@dataclass(frozen=True)
class VideoState:
    """One video by its newest rows. failed: reason and attempt of each segment that failed."""

    video_id: str
    uri: str
    state: str
    reason: str | None
    n_segments: int
    segments: frozenset[int]
    failed: dict[int, tuple[str, int]]


def video_states(rows: pa.Table) -> dict[str, VideoState]:
    """video_id -> state: failed if any segment failed, else annotated if any has windows, else
    no_face. rows: one per (video_id, segment)."""
    columns = ["video_id", "uri", "segment", "n_segments", "state", "reason", "attempt"]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows.select(columns).to_pylist():
        grouped.setdefault(row["video_id"], []).append(row)
    return {video_id: _state(members) for video_id, members in grouped.items()}


def _state(rows: list[dict[str, Any]]) -> VideoState:
    found = {row["state"] for row in rows}
    return VideoState(
        video_id=rows[0]["video_id"],
        uri=rows[0]["uri"],
        state=next(s for s in ("failed", "annotated", "no_face") if s in found),
        reason=next((row["reason"] for row in rows if row["reason"] is not None), None),
        n_segments=rows[0]["n_segments"],
        segments=frozenset(row["segment"] for row in rows),
        failed={
            row["segment"]: (row["reason"], row["attempt"])
            for row in rows
            if row["state"] == "failed"
        },
    )
