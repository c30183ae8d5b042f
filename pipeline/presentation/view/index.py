"""What is asked of an output while somebody looks at it: DuckDB over the rows that count.

The lake's own files are many and small, and change under a reader's feet. So what the archive page filters
and counts by is read once, by the ledger, into a DuckDB file of a temporary folder; what only one video's
page shows (paths, scores) is read from the lake when that page is opened.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.audit import SAME_S, UNITS, same_window
from emolake.pipeline.evaluation.measuring import draw_name
from emolake.pipeline.labels import canonical
from emolake.pipeline.lake.labels import (
    ANSWER,
    NO_EMOTION,
    SLOT,
    WINDOW,
    Labels,
    checked,
    save,
    slot_of,
)
from emolake.pipeline.lake.layout import LEDGER, DataFile, Lake
from emolake.pipeline.lake.ledger import ledger_parts, newest_versions
from emolake.pipeline.lake.reading import Snapshot, in_one_moment, table_schema
from emolake.pipeline.lake.schema import LABELS, VIDEO_ITSELF
from emolake.pipeline.presentation.blur import all_told
from emolake.pipeline.presentation.view import PER, QUEUES
from emolake.pipeline.storage.shards import Joined

PAGE = 48
FACETS = ("emotion", "corpus", "date", "model", "reviewed")
SORTS = {
    "sure": "confidence desc",
    "unsure": "uncertain is true desc, confidence",
    "large": "face_px desc nulls last",
    "newest": "date desc",
    "time": "place",
}
_AT_ONCE = 50_000  # rows
_VALUES = 60  # of a facet
_VIDEOS_KEPT = 8
_OF_A_VIDEO = {
    "annotations": (
        *("video_id", "segment", "track_id", "window", "start_s", "end_s", "emotion", "confidence"),
        *("scores", "uncertain", "transcript", "description", "person_id", "model"),
    ),
    "tracks": ("video_id", "segment", "track_id", "start_s", "end_s", "path"),
}
_OF_SEGMENTS = (
    *("video_id", "uri", "segment", "n_segments", "state", "reason", "detail", "duration_s"),
    *("fps", "n_windows", "n_tracks", "n_dropped_tracks", "commit_id"),
)
_OF_WINDOWS = (
    *("video_id", "uri", "segment", "track_id", "window", "start_s", "end_s", "emotion"),
    *("confidence", "uncertain", "bbox", "quality", "person_id", "transcript", "description"),
    *("model", "model_revision", "config_hash", "corpus", "date"),
)
_KEY = 'video_id, segment, track_id, "window"'
_ARCHIVE = f"""
    create or replace table windows as
    select w.* exclude (bbox, quality), bbox.x1 as x1, bbox.y1 as y1, bbox.x2 as x2, bbox.y2 as y2,
        quality.face_px as face_px, s.duration_s, lower(uri) as named,
        lower(concat_ws(' ', transcript, description)) as words,
        row_number() over (order by uri, start_s, segment, track_id, w.rowid) as place
    from windows w left join (
        select video_id, max(duration_s) as duration_s from segments group by all
    ) s using (video_id)
    order by place;

    create or replace table faces as
    select *, min(emotion) over same <> max(emotion) over same as apart
    from windows where track_id <> {VIDEO_ITSELF}
    window same as (partition by {_KEY})
    qualify row_number() over (partition by {_KEY} order by place) = 1
"""
_MOMENTS = f"""
    create or replace view moments as
    select w.*, coalesce(l.label, '') as told, if(l.label is null, 'no', 'yes') as reviewed
    from windows w left join (
        select {_KEY}, round(start_s, 2) as said_from, round(end_s, 2) as said_to,
            string_agg(label, ', ' order by reviewer) as label
        from said where kind = 'emotion' group by all
    ) l on l.video_id = w.video_id and l.segment = w.segment and l.track_id = w.track_id
        and l."window" = w."window" and abs(w.start_s - said_from) <= {SAME_S}
        and abs(w.end_s - said_to) <= {SAME_S}
"""
"""A window that was cut otherwise since is not the one of which something was said."""
_LOT = {
    "window": 'concat(uri, chr(0), segment, chr(0), track_id, chr(0), "window")',
    "video": "uri",
}


@dataclass(frozen=True)
class Filter:
    """What the archive page shows, as its address says it: facets by the values that are wanted, the rest as
    typed; empty where nothing is asked."""

    emotion: tuple[str, ...] = ()
    corpus: tuple[str, ...] = ()
    date: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    reviewed: tuple[str, ...] = ()
    video: str = ""
    words: str = ""
    person: str = ""
    sure_from: str = ""
    sure_to: str = ""
    face_from: str = ""
    seconds_from: str = ""
    seconds_to: str = ""
    sort: str = "sure"

    @classmethod
    def of(cls, told: Iterable[tuple[str, str]] = ()) -> Filter:
        """told: names and values, of facets several. UserError where a value is none of its kind."""
        known: dict[str, Any] = {}
        names = {f.name for f in fields(cls)}
        for name, value in told:
            if name in FACETS:
                known[name] = (*known.get(name, ()), value)
            elif name in names and value.strip():
                known[name] = value.strip()
        made = cls(**known)
        made.where()
        if made.sort not in SORTS:
            raise UserError(f"sort {made.sort!r} is unknown; there are {', '.join(SORTS)}")
        return made

    def told(self) -> dict[str, Any]:
        """What differs from asking for nothing."""
        return {
            name: value for name, value in asdict(self).items() if value != getattr(Filter, name)
        }

    def where(self) -> tuple[str, list[Any]]:
        """SQL over `moments` and its values, facets left out."""
        parts: list[str] = []
        values: list[Any] = []
        for name, clause in _CLAUSES.items():
            if asked := getattr(self, name):
                parts.append(clause)
                values.append(_number(name, asked) if "_" in name or name == "person" else asked)
        return " and ".join(parts) or "true", values

    def of_facets(self, but: str | None = None) -> tuple[str, list[Any]]:
        """The same of facets. but: one that is left out, to count its other values."""
        chosen = {name: getattr(self, name) for name in FACETS if getattr(self, name)}
        chosen.pop(but or "", None)
        parts = (f"{name} in ({', '.join('?' * len(of))})" for name, of in chosen.items())
        return " and ".join(parts) or "true", [value for of in chosen.values() for value in of]


_CLAUSES = {
    "video": "contains(named, lower(?))",
    "words": "contains(words, lower(?))",
    "person": "person_id = ?",
    "sure_from": "confidence >= ? / 100",
    "sure_to": "confidence <= ? / 100",
    "face_from": "face_px >= ?",
    "seconds_from": "duration_s >= ?",
    "seconds_to": "duration_s <= ?",
}


def _number(name: str, told: str) -> float:
    try:
        number = float(told)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} {told[:40]!r} is no number")
    return number


@dataclass(frozen=True)
class Queue:
    """An order in which windows are asked about. random decides by seed alone, so that its first n are a
    sample (evaluation.shares.lot); per: takes one of each of these in turn."""

    name: str = "random"
    seed: int = 0
    per: str = ""
    unit: str = "window"

    @classmethod
    def of(cls, told: Mapping[str, str]) -> Queue:
        """UserError where there is no such queue."""
        name, per = told.get("queue") or "random", told.get("per") or ""
        unit, seed = told.get("unit") or "window", told.get("seed") or "0"
        for given, known, what in ((name, QUEUES, "queue"), (unit, UNITS, "unit")):
            if given not in known:
                raise UserError(f"{what} {given!r} is unknown; there are {', '.join(known)}")
        if per and per not in PER:
            raise UserError(f"per {per!r} is unknown; there are {', '.join(PER)}")
        if not re.fullmatch(r"-?[0-9]{1,18}", seed):
            raise UserError(f"seed {seed[:40]!r} is no whole number of up to 18 digits")
        return cls(name, int(seed), per, unit)

    def __str__(self) -> str:
        """As labels tell it: a random one that takes turns is no sample of the archive."""
        if self.name == "random" and not self.per:
            return draw_name(self.unit, self.seed)
        return f"{self.name}{self.per and f' per {self.per}'}, seed {self.seed}"

    def told(self) -> dict[str, str]:
        return {"queue": self.name, "seed": str(self.seed), "per": self.per, "unit": self.unit}

    def sql(self) -> tuple[str, list[Any]]:
        """The keys of `WINDOW` by place, over `faces`, which has one row a window: the first model's."""
        lot = f"sha256(concat(?::bigint, chr(0), {_LOT[self.unit]}))"
        asked = "where apart" if self.name == "disagree" else ""
        order = {
            "random": f"lot, {_KEY}",
            "uncertain": "uncertain is true desc, confidence, lot",
            "disagree": "lot",
            "rare": "of_emotion, lot",
        }[self.name]
        turn = f"row_number() over (partition by {self.per} order by rank)" if self.per else "0"
        return (
            f"""
            select {_KEY}, row_number() over (order by turn, rank) as place from (
                select *, {turn} as turn from (
                    select *, row_number() over (order by {order}) as rank from (
                        select *, row_number() over (partition by emotion order by lot) as of_emotion
                        from (select *, {lot} as lot from faces {asked})
                    )
                )
            )
            """,
            [self.seed],
        )


class Index:
    """An output as it stood when it was read last, and what people said of it since."""

    def __init__(self, lake: Lake, folder: Path, reviewer: str) -> None:
        self.lake = lake
        self.reviewer = reviewer
        self.labels = Labels.of(lake)
        self.read_at = datetime.now(UTC)
        self._connection = duckdb.connect(str(folder / "index.duckdb"))
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._keeping = threading.Lock()
        self._kept: OrderedDict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = (
            OrderedDict()
        )
        self._queues: dict[Queue, str] = {}
        self.read()

    def read(self) -> None:
        """All anew. What is shown and said meanwhile goes by what was read before."""
        with self._reading, self._cursor() as cursor:
            in_one_moment(self.lake, lambda snapshot: self._read(cursor, snapshot))

    def close(self) -> None:
        self._connection.close()

    def read_labels(self) -> None:
        """What others have said since."""
        with self._writing:
            if self.labels.read_on():
                with self._cursor() as cursor:
                    self._fill_said(cursor)

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        cursor = self._connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def _read(self, cursor: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
        cursor.begin()
        try:
            self._fill(cursor, snapshot)
        except BaseException:
            cursor.rollback()
            raise
        with self._writing, self._keeping:
            cursor.commit()
            self._kept.clear()
            self._queues = {}
            self.labels = Labels.of(self.lake)
            self._fill_said(cursor)
            self.read_at = datetime.now(UTC)

    def _fill(self, cursor: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
        where = {
            file.commit_id: {"commit_id": file.commit_id, "corpus": file.corpus, "date": file.date}
            for file in self.lake.files(LEDGER)
        }
        schema = pa.schema([(name, pa.string()) for name in ("commit_id", "corpus", "date")])
        commits = pa.Table.from_pylist(list(where.values()), schema)
        _insert(cursor, "commits", [commits], commits.schema)
        rows = (newest_versions(part.live) for part in ledger_parts(snapshot.ledger))
        _insert(cursor, "bare", rows, _some(LEDGER, _OF_SEGMENTS))
        cursor.execute(
            "create or replace table segments as select * from bare left join commits using (commit_id)"
        )
        tables = snapshot.tables("annotations", list(_OF_WINDOWS))
        _insert(cursor, "windows", tables, _some("annotations", _OF_WINDOWS))
        cursor.execute(_ARCHIVE)

    def _fill_said(self, cursor: duckdb.DuckDBPyConnection) -> None:
        cursor.register("came", _said_table(self.labels.standing()))
        cursor.execute("create or replace table said as select * from came")
        cursor.unregister("came")
        cursor.execute(_MOMENTS)

    def _rows(self, sql: str, values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        with self._cursor() as cursor:
            told = cursor.execute(sql, list(values))
            names = [column[0] for column in told.description]
            return [dict(zip(names, row, strict=True)) for row in told.fetchall()]

    def all_local(self) -> bool:
        """Whether every video is a file of this machine."""
        (told,) = self._rows("select count(*) as n from segments where contains(uri, '://')")
        return not told["n"]

    def overview(self) -> dict[str, Any]:
        (told,) = self._rows(
            """
            select (select count(distinct video_id) from segments) as videos,
                (select count(*) from windows) as windows,
                (select count(*) from said where kind = 'emotion') as labels
            """
        )
        return told

    def facets(self, asked: Filter) -> dict[str, list[tuple[str, int]]]:
        """For each facet its values with how many moments they would leave."""
        where, values = asked.where()
        counts = []
        for name in FACETS:
            of_others, more = asked.of_facets(but=name)
            values += more
            counts.append(
                f"(select '{name}' as facet, {name}::varchar as value, count(*) as n from base "
                f"where {of_others} group by all order by n desc, value limit {_VALUES})"
            )
        base = f"select {', '.join(FACETS)} from moments where {where}"
        out: dict[str, list[tuple[str, int]]] = {name: [] for name in FACETS}
        for row in self._rows(
            f"with base as materialized ({base}) {' union all '.join(counts)}", values
        ):
            out[row["facet"]].append((row["value"], row["n"]))
        return {name: sorted(told, key=lambda of: (-of[1], of[0])) for name, told in out.items()}

    def moments(self, asked: Filter, page: int) -> tuple[int, list[dict[str, Any]]]:
        """How many there are, and those of a page (from 0)."""
        where, values = asked.where()
        of_facets, more = asked.of_facets()
        places = f"select place from moments where {where} and {of_facets}"
        (count,) = self._rows(f"select count(*) as n from ({places})", [*values, *more])
        found = self._rows(
            f"{places} order by {SORTS[asked.sort]}, place limit {PAGE} offset {PAGE * page}",
            [*values, *more],
        )
        order = {row["place"]: k for k, row in enumerate(found)}
        if not order:
            return count["n"], []
        rows = self._rows(f"select * from moments where place in ({', '.join(map(str, order))})")
        return count["n"], sorted(rows, key=lambda row: order[row["place"]])

    def video(self, video_id: str) -> list[dict[str, Any]]:
        """Its segments in order; none where there is no such video."""
        return self._rows("select * from segments where video_id = ? order by segment", [video_id])

    def rows_of(self, video_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """A video's annotations and tracks. FileNotFoundError where they were rewritten since the index was
        read."""
        with self._keeping:
            if video_id in self._kept:
                self._kept.move_to_end(video_id)
                return self._kept[video_id]
            as_of = self.read_at
        found: dict[str, list[dict[str, Any]]] = {"annotations": [], "tracks": []}
        segments = [segment for segment in self.video(video_id) if segment["n_windows"]]
        for table, rows in found.items():
            needed = [s for s in segments if table == "annotations" or s["n_tracks"]]
            commits: dict[tuple[str, str, str], list[int]] = {
                (s["corpus"], s["date"], s["commit_id"]): [] for s in needed
            }
            for segment in needed:
                place = (segment["corpus"], segment["date"], segment["commit_id"])
                commits[place].append(segment["segment"])
            for place, wanted in sorted(commits.items()):
                file = DataFile(self.lake.data_path(table, *place), 0)
                read = self.lake.read_table(file, list(_OF_A_VIDEO[table]))
                own = pc.and_(
                    pc.equal(read["video_id"], video_id),
                    pc.is_in(read["segment"], pa.array(wanted)),
                )
                rows += read.filter(own).to_pylist(maps_as_pydicts="strict")
        told = found["annotations"], found["tracks"]
        with self._keeping:
            if as_of == self.read_at:
                self._kept[video_id] = told
            while len(self._kept) > _VIDEOS_KEPT:
                self._kept.popitem(last=False)
        return told

    def whole(self, video_id: str) -> bool:
        """Whether all of a video was analysed and each face that was met is told."""
        segments = self.video(video_id)
        _, tracks = self.rows_of(video_id)
        return all_told(segments, tracks)

    def said_of(self, video_id: str) -> list[dict[str, Any]]:
        return [row for row in self.labels.standing() if row["video_id"] == video_id]

    def next_in(self, queue: Queue) -> tuple[dict[str, Any] | None, int, int]:
        """The first window that the reviewer has said nothing of, how many they have, of how many."""
        table = self._queue_table(queue)
        mine = (
            f"(select {_KEY} from said join faces f using ({_KEY}) where reviewer = ? and kind = 'emotion' "
            f"and abs(said.start_s - f.start_s) <= {SAME_S} and abs(said.end_s - f.end_s) <= {SAME_S})"
        )
        (count,) = self._rows(
            f"""
            with mine as materialized {mine}
            select count(*) as n, count(*) filter (({_KEY}) in (from mine)) as done,
                min(place) filter (({_KEY}) not in (from mine)) as place
            from {table}
            """,
            [self.reviewer],
        )
        found = self._rows(
            f"select f.* from faces f join {table} q using ({_KEY}) where q.place = ?",
            [count["place"]],
        )
        return (found[0] if found else None), count["done"], count["n"]

    def _queue_table(self, queue: Queue) -> str:
        with self._writing:
            if queue not in self._queues:
                name = f"queue_{len(self._queues)}"
                sql, values = queue.sql()
                with self._cursor() as cursor:
                    cursor.execute(f"create or replace table {name} as {sql}", values)
                self._queues[queue] = name
            return self._queues[queue]

    def taught(self) -> dict[str, Any]:
        """Of windows that people labelled: how often the model had said so, in all and by what they said."""
        rows = [
            row
            for row in self.labels.standing(["emotion"])
            if row["emotion"] is not None and row["label"] not in NO_EMOTION
        ]
        by: dict[str, list[int]] = {}
        for row in rows:
            seen = by.setdefault(row["label"], [0, 0])
            seen[0] += row["label"] == canonical(row["emotion"])
            seen[1] += 1
        return {
            "labels": len(rows),
            "right": sum(r for r, _ in by.values()),
            "by": dict(sorted(by.items())),
        }

    def _check_track(self, row: Mapping[str, Any], other: str) -> None:
        segment, _, track = other.partition(".")
        if (int(segment), int(track)) != (row["segment"], row["track_id"]) and self._rows(
            "select 1 from faces where video_id = ? and segment = ? and track_id = ? limit 1",
            [row["video_id"], segment, track],
        ):
            return
        raise UserError(f"the video has no other face {other}")

    def say(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Stores what the reviewer says of a window, and returns the row, with what they had said (`before`).
        told: the keys of `WINDOW`, kind, label (None takes it back), blind, queue. UserError where there is
        no such window."""
        key = [told[name] for name in WINDOW]
        found = self._rows(f"select * from faces where ({_KEY}) = (?, ?, ?, ?)", key)
        if not found:
            raise UserError("there is no such window in the output as it was read; read it anew")
        row = found[0]
        if told["kind"] == "same person" and told["label"] is not None:
            self._check_track(row, checked("same person", told["label"]) or "")
        said = {name: row[name] for name in (*WINDOW, "uri", "start_s", "end_s", *ANSWER)}
        said |= {"reviewer": self.reviewer, "kind": told["kind"], "blind": bool(told.get("blind"))}
        said |= {"label": checked(told["kind"], told["label"]), "queue": told.get("queue") or None}
        with self._writing:
            self.labels.read_on()
            last = self.labels.last(slot_of(said))
            before = last["label"] if last is not None and same_window(last, row) else None
            said["revision"] = self.labels.next_revision(slot_of(said))
            stored = save(self.lake, said, row["corpus"], row["date"])
            self.labels.add(stored)
            with self._cursor() as cursor:
                cursor.execute(
                    f"delete from said where ({', '.join(map(_quoted, SLOT))}) = "
                    f"({', '.join('?' * len(SLOT))})",
                    list(slot_of(stored)),
                )
                cursor.register("came", _said_table([stored]))
                cursor.execute("insert into said select * from came where label is not null")
        return stored | {"before": before}


def _quoted(name: str) -> str:
    return f'"{name}"'


def _said_table(rows: list[dict[str, Any]]) -> pa.Table:
    names = (*SLOT, "label", "start_s", "end_s")
    schema = pa.schema([LABELS.field(name).with_nullable(True) for name in names])
    return pa.Table.from_pylist([{name: row[name] for name in names} for row in rows], schema)


def _some(table: str, columns: Iterable[str]) -> pa.Schema:
    schema = table_schema(table)
    return pa.schema([schema.field(name) for name in columns])


def _insert(
    cursor: duckdb.DuckDBPyConnection, name: str, tables: Iterable[pa.Table], schema: pa.Schema
) -> None:
    """Makes a table of others' rows, many at a time."""
    cursor.register("came", schema.empty_table())
    cursor.execute(f"create or replace table {name} as select * from came")
    held = Joined()

    def put() -> None:
        cursor.register("came", pa.concat_tables([schema.empty_table(), *held.tables]))
        cursor.execute(f"insert into {name} select * from came")

    for table in tables:
        held.add(table.select(schema.names))
        if held.num_rows >= _AT_ONCE:
            put()
            held = Joined()
    put()
    cursor.unregister("came")
