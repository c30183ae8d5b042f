"""Reading an output right, also while a run goes on: what the ledger says counts, and nothing else.

Between runs a plain glob shows the same rows; these functions are for readers who cannot wait.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.errors import EmolakeError, UserError, in_a_line
from emolake.pipeline.lake.forgetting import Forgotten
from emolake.pipeline.lake.layout import LEASES, LEDGER, RUNS, Lake
from emolake.pipeline.lake.ledger import (
    Segments,
    gather,
    ledger_parts,
    ledger_shards,
    needing,
    of_uris,
    without_segments,
)
from emolake.pipeline.lake.order import is_rewrite
from emolake.pipeline.lake.schema import TABLES
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.shards import Shards

_PARTITIONS = ("corpus", "date")
_TRIES = 5

T = TypeVar("T")


class FilesChanged(EmolakeError):
    """Files went between the reading of the ledger and of what it names."""

    def __init__(self, output: str) -> None:
        super().__init__(f"{output} is being rewritten all the time; try again later")


def read_annotations(
    output: str, storage_options: Mapping[str, Any] | None = None, columns: list[str] | None = None
) -> pa.Table:
    """One row per face track and window (schema.ANNOTATIONS, then corpus and date).

    columns: those wanted, all by default. UserError where `output` is no output of emolake.
    """
    return _read(output, storage_options, "annotations", columns)


def read_tracks(
    output: str, storage_options: Mapping[str, Any] | None = None, columns: list[str] | None = None
) -> pa.Table:
    """One row per face track (schema.TRACKS, then corpus and date)."""
    return _read(output, storage_options, "tracks", columns)


def read_videos(
    output: str, storage_options: Mapping[str, Any] | None = None, columns: list[str] | None = None
) -> pa.Table:
    """One row per segment, the newest that counts (schema.VIDEOS, then corpus and date)."""
    return _read(output, storage_options, LEDGER, columns)


def stream(
    output: str,
    table: str = "annotations",
    storage_options: Mapping[str, Any] | None = None,
    columns: list[str] | None = None,
) -> pa.RecordBatchReader:
    """The same rows one file after another, in the memory of a few files: for archives whose tables no
    memory holds. DuckDB and Polars take it as it is.

    What it yields is of one moment; FilesChanged on the way where settling or compaction removed a file
    before it was read: start again. UserError as above.
    """
    with _told_of(output):
        snapshot = in_one_moment(opened(output, storage_options), lambda snapshot: snapshot)
    wanted = _columns(table, columns)
    tables = snapshot.tables(table, wanted)
    batches = (batch for rows in tables for batch in rows.to_batches())
    return pa.RecordBatchReader.from_batches(_schema_of(table, wanted), batches)


def opened(output: str, storage_options: Mapping[str, Any] | None = None) -> Lake:
    """UserError where `output` is no output of emolake."""
    lake = Lake.at(output, Storage(storage_options or {}))
    with _told_of(output):
        if not lake.files(LEDGER):
            refuse_unless_used(lake)
    return lake


def refuse_unless_used(lake: Lake) -> None:
    """UserError where no run has ever written here. One that has been emptied holds leases still."""
    if not any(lake.fs.isdir(lake.path(folder)) for folder in (LEDGER, LEASES, RUNS)):
        raise UserError(f"{lake.uri} holds no run; name the --output of an annotate")


def _read(
    output: str, options: Mapping[str, Any] | None, table: str, columns: list[str] | None
) -> pa.Table:
    with _told_of(output):
        return live_rows(opened(output, options), table, _columns(table, columns))


@contextmanager
def _told_of(output: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{output} cannot be read: {in_a_line(error)}") from None


@dataclass(frozen=True)
class Snapshot:
    """What counts in an output at one moment, in bounded memory. ledger: the committed rows, whole;
    commits: by table, those that have rows that count; uncounted: what of a commit does not count (or
    not yet). What is to be forgotten is in none of them."""

    lake: Lake
    ledger: Shards
    commits: Mapping[str, frozenset[str]]
    uncounted: Segments

    @classmethod
    def of(cls, lake: Lake) -> Snapshot:
        """FilesChanged where settling or compaction rewrites the ledger at this very moment."""
        with _unchanged(lake):
            ledger = ledger_shards(lake, whole=True)
        commits: dict[str, set[str]] = {name: set() for name in TABLES}
        uncounted: Segments = {}
        if forgotten := Forgotten.of(lake):
            ledger = _without(ledger, forgotten, uncounted)
        for part in ledger_parts(ledger):
            for name, of_table in commits.items():
                of_table.update(needing(part.live, name)["commit_id"].unique().to_pylist())
            gather(uncounted, part.rows.filter(pc.not_equal(part.rows["standing"], "live")))
        frozen = {name: frozenset(of_table) for name, of_table in commits.items()}
        return cls(lake, ledger, frozen, uncounted)

    def tables(
        self,
        name: str,
        columns: list[str] | None = None,
        commits: Collection[str] | None = None,
        but: Segments | None = None,
    ) -> Iterator[pa.Table]:
        """The rows of a table that count, file by file, with the partition columns corpus and date.

        columns: those wanted, all by default; commits: of these only; but: segments left out. FilesChanged
        where a file that has to be there has gone meanwhile.
        """
        wanted = _columns(name, columns)
        ids = self.commits[name] if commits is None else self.commits[name].intersection(commits)
        files = [file for file in self.lake.files(name) if file.commit_id in ids]
        if len(files) < len(ids):
            raise FilesChanged(self.lake.uri)
        read = dict.fromkeys([*wanted, "video_id", "segment"])
        own = [column for column in read if column not in _PARTITIONS]
        try:
            for file, table in self.lake.read_tables(files, own):
                if name == LEDGER and not table.num_rows:
                    raise FilesChanged(self.lake.uri)  # it went, and its place was taken
                for told in (self.uncounted, but or {}):
                    if gone := told.get(file.commit_id):
                        table = without_segments(table, gone)
                for partition in _PARTITIONS:
                    value = pa.array([getattr(file, partition)] * table.num_rows, pa.string())
                    table = table.append_column(partition, value)
                yield table.select(wanted)
        except FileNotFoundError:
            raise FilesChanged(self.lake.uri) from None


def _without(ledger: Shards, forgotten: Forgotten, left_out: Segments) -> Shards:
    """What a slow writer may have brought back since is not shown, though it has not been erased anew."""
    kept = Shards(ledger.schema)
    for part in ledger.parts():
        gone = of_uris(part, forgotten)
        gather(left_out, part.filter(gone))
        kept.add(part.filter(pc.invert(gone)))
    return kept


def in_one_moment(lake: Lake, read: Callable[[Snapshot], T]) -> T:
    """What `read` makes of an output; asked again, a few times, where files go under its feet."""
    return _steadily(lake, lambda: read(Snapshot.of(lake)))


def steady_ledger(lake: Lake, *, whole: bool = False) -> Shards:
    """`ledger_shards` of an output that a run or a compaction may be writing to."""

    def read() -> Shards:
        with _unchanged(lake):
            return ledger_shards(lake, whole=whole)

    return _steadily(lake, read)


def _steadily(lake: Lake, read: Callable[[], T]) -> T:
    for left in reversed(range(_TRIES)):
        try:
            return read()
        except (FilesChanged, FileNotFoundError) as error:
            if not left:
                raise FilesChanged(lake.uri) from error
    raise AssertionError("unreachable")


@contextmanager
def _unchanged(lake: Lake) -> Iterator[None]:
    """FilesChanged where a rewriting of the ledger went on while it was read: a listing of a folder is no
    moment, and may have missed both a commit that went and the one that came for it. One that went may have
    had its place taken since by a recovery that had slept, with a file of another size. What a run adds
    meanwhile does not matter."""
    before = {(file.commit_id, file.size) for file in lake.files(LEDGER)}
    yield
    after = {(file.commit_id, file.size) for file in lake.files(LEDGER)}
    if before - after or any(is_rewrite(commit_id) for commit_id, _ in after - before):
        raise FilesChanged(lake.uri)


def live_rows(lake: Lake, name: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a table that count by the ledger, with the partition columns corpus and date."""
    wanted = _columns(name, columns)

    def read(snapshot: Snapshot) -> pa.Table:
        empty = _schema_of(name, wanted).empty_table()
        return pa.concat_tables([empty, *snapshot.tables(name, wanted)])

    return in_one_moment(lake, read)


def _columns(name: str, columns: list[str] | None) -> list[str]:
    """UserError where a table has no such column."""
    there = table_schema(name).names
    if unknown := sorted(set(columns or []) - set(there)):
        raise UserError(f"{name} has no column {unknown[0]!r}")
    return columns or there


def _schema_of(name: str, columns: list[str]) -> pa.Schema:
    schema = table_schema(name)
    return pa.schema([schema.field(column) for column in columns])


def table_schema(name: str) -> pa.Schema:
    """A table's columns as readers see them: with the partition columns corpus and date. UserError where
    there is no such table."""
    if name not in TABLES:
        raise UserError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return pa.schema([*TABLES[name], *(pa.field(p, pa.string()) for p in _PARTITIONS)])
