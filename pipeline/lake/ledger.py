"""Reading the ledger: which segment rows count, and the one state of each video."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.errors import PASSING_REASONS
from emolake.pipeline.lake.layout import LEDGER, Lake
from emolake.pipeline.lake.order import in_order
from emolake.pipeline.lake.schema import VIDEOS
from emolake.pipeline.storage.shards import Shards

_SLIM = pa.schema(
    VIDEOS.field(name)
    for name in (
        *("video_id", "uri", "segment", "n_segments", "state", "reason", "attempt"),
        *("config_hash", "commit_id", "finished_at", "lease", "n_tracks", "n_windows", "run_id"),
    )
)


Segments = dict[str, set[tuple[str, int]]]
"""(video_id, segment) by commit id."""


@dataclass(frozen=True)
class Ledger:
    """rows: committed ledger rows (columns of schema.VIDEOS, then `standing`).

    standing says whether a row is
    - live: the newest of its (video_id, segment), in the newest whole version of its uri. When an
      object has changed, or was cut into other segments, the new version counts once all its
      segments are there and none of them failed in a way that may pass; one of which something worked, as
      soon as all are there, where of what it replaces nothing worked or some are missing;
    - pending: of a newer version that is not so far yet, or a newer failure that may pass, of what has
      been done before;
    - stale: replaced by a row that counts.
    """

    rows: pa.Table

    @property
    def live(self) -> pa.Table:
        return self.rows.filter(pc.equal(self.rows["standing"], "live"))

    @property
    def stale(self) -> pa.Table:
        return self.rows.filter(pc.equal(self.rows["standing"], "stale"))


def ledger_shards(lake: Lake, *, whole: bool = False) -> Shards:
    """What planning and settling need of every committed row (all of it, if `whole`), in bounded memory."""
    schema = VIDEOS if whole else _SLIM
    return Shards.of(
        schema, (rows for _, rows in lake.read_tables(lake.files(LEDGER), schema.names))
    )


def ledger_parts(shards: Shards) -> Iterator[Ledger]:
    """Ledgers that share no uri and together hold every committed row (the columns of `_SLIM`)."""
    for rows in shards.parts():
        yield ledger_of(rows)


def ledger_of(rows: pa.Table) -> Ledger:
    """rows: committed rows, all of each uri that occurs."""
    rows = in_order(rows)
    return Ledger(rows.append_column("standing", _standing(rows)))


def needing(ledger: pa.Table, table: str) -> pa.Table:
    """The rows of the ledger whose segments may have rows in a table. Windows of what is said are of no
    track, and a track without windows has no row."""
    if table == LEDGER:
        return ledger
    needs = pc.greater(ledger["n_windows"], 0)
    if table == "tracks":
        needs = pc.and_(needs, pc.greater(ledger["n_tracks"], 0))
    return ledger.filter(needs)


def gather(segments: Segments, rows: pa.Table) -> None:
    """Adds the segments of some ledger rows."""
    for row in rows.select(["commit_id", "video_id", "segment"]).to_pylist():
        segments.setdefault(row["commit_id"], set()).add((row["video_id"], row["segment"]))


def of_uris(rows: pa.Table, uris: Container[str]) -> pa.BooleanArray:
    """Which of some ledger rows are of these videos."""
    there = [uri for uri in rows["uri"].unique().to_pylist() if uri in uris]
    return pc.is_in(rows["uri"], pa.array(there, pa.string()))


def without_segments(table: pa.Table, gone: Container[tuple[str, int]]) -> pa.Table:
    """The rows of a table (one commit's) that are of other segments."""
    pairs = zip(*(table[n].to_pylist() for n in ("video_id", "segment")), strict=True)
    return table.filter(pa.array([pair not in gone for pair in pairs], pa.bool_()))


def _standing(rows: pa.Table) -> pa.Array:
    """`live`, `pending` or `stale` for rows that stand in order."""
    order = pa.array(range(rows.num_rows), pa.int64())
    failed = pc.equal(rows["state"], "failed")
    passing = pc.and_(failed, pc.is_in(rows["reason"], pa.array(sorted(PASSING_REASONS))))
    slim = rows.select(["video_id", "uri", "segment", "n_segments"]).append_column("at", order)
    # What may pass says nothing against what is there: where nothing else was told it speaks.
    firm = pc.if_else(passing, -1, order)
    slim = slim.append_column("firm", firm)
    # A version is one object cut one way; of each of its segments the newest row speaks.
    version = ["uri", "video_id", "n_segments"]
    newest = slim.group_by([*version, "segment"]).aggregate([("at", "max"), ("firm", "max")])
    is_firm = pc.greater(newest["firm_max"], -1)
    newest = newest.append_column("is_firm", is_firm.cast(pa.int64())).append_column(
        "speaks", pc.if_else(is_firm, newest["firm_max"], newest["at_max"])
    )
    worked = pc.invert(failed.take(newest["speaks"])).cast(pa.int64())
    newest = newest.append_column("worked", worked)
    versions = newest.group_by(version).aggregate(
        [("segment", "count"), ("is_firm", "sum"), ("worked", "max"), ("speaks", "max")]
    )
    latest: dict[tuple[str, str, int], tuple[int, int]] = {}
    chosen: dict[str, tuple[int, int]] = {}
    useless: dict[str, bool] = {}
    columns = (*version, "segment_count", "is_firm_sum", "worked_max", "speaks_max")
    for uri, video_id, count, there, firm_ones, worked, at in _zipped(
        versions.sort_by("speaks_max"), *columns
    ):
        wholeness = 0 if there < count or not firm_ones else 2 if firm_ones == count else 1
        latest[(uri, video_id, count)] = wholeness, at
        before = chosen[uri][0] if uri in chosen else -1
        # Where some of a newer version may still come out otherwise, what worked and it shall replace stays,
        # unless there is less of that.
        if (
            wholeness == 2
            or (worked and wholeness > before)
            or (useless.get(uri, True) and (wholeness >= before or (worked and wholeness)))
        ):
            chosen[uri], useless[uri] = (wholeness, at), not worked
    standing = ["stale"] * rows.num_rows
    for uri, video_id, count, at, speaks in _zipped(newest, *version, "at_max", "speaks"):
        rank = latest[(uri, video_id, count)]
        if rank == chosen[uri]:
            standing[speaks] = "live"
        elif rank[1] > chosen[uri][1]:
            standing[speaks] = "pending"
        if at > speaks and standing[speaks] != "stale":
            standing[at] = "pending"
    return pa.array(standing, pa.string())


def _zipped(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def newest_versions(rows: pa.Table) -> pa.Table:
    """Per video_id, the newest row of each segment of its newest cut into segments, whole or not:
    what a run that goes on from here must not do again."""
    order = pa.array(range(rows.num_rows), pa.int64())
    slim = rows.select(["video_id", "segment", "n_segments"]).append_column("at", order)
    newest = slim.group_by(["video_id", "n_segments", "segment"]).aggregate([("at", "max")])
    latest: dict[str, tuple[int, int]] = {}
    for video_id, count, at in _zipped(newest, "video_id", "n_segments", "at_max"):
        latest[video_id] = max(latest.get(video_id, (-1, -1)), (at, count))
    keep = [
        at
        for video_id, count, at in _zipped(newest, "video_id", "n_segments", "at_max")
        if latest[video_id][1] == count
    ]
    return rows.filter(pc.is_in(order, pa.array(keep, pa.int64())))


def newest_of_each(rows: pa.Table) -> pa.Table:
    """Of each uri the newest row, whether it counts or not (yet). rows: in order."""
    order = pa.array(range(rows.num_rows), pa.int64())
    newest = (
        rows.select(["uri"]).append_column("at", order).group_by("uri").aggregate([("at", "max")])
    )
    return rows.take(newest["at_max"])


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
