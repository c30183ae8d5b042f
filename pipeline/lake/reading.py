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
from emolake.pipeline.lake.layout import LEDGER, Lake
from emolake.pipeline.lake.ledger import ledger_parts, ledger_shards, needing, read_ledger
from emolake.pipeline.lake.order import is_rewrite
from emolake.pipeline.lake.schema import TABLES
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.shards import Shards

_PARTITIONS = ("corpus", "date")
_TRIES = 5


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


def _read(
    output: str, options: Mapping[str, Any] | None, name: str, columns: list[str] | None
) -> pa.Table:
    lake = Lake.at(output, Storage(options or {}))
    unknown = set(columns or []) - {*TABLES[name].names, *_PARTITIONS}
    if unknown:
        raise UserError(f"{name} has no column {sorted(unknown)[0]!r}")
    try:
        if not lake.files(LEDGER):
            raise UserError(f"{output} holds no run; name the --output of an annotate")
        return live_rows(lake, name, columns)
    except OSError as error:
        raise UserError(f"{output} cannot be read: {in_a_line(error)}") from None


T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """What counts in an output at one moment, in bounded memory. ledger: every committed row, whole;
    uncounted: (video_id, segment) by commit id, of rows that do not count (or not yet)."""

    lake: Lake
    ledger: Shards
    commits: frozenset[str]
    uncounted: Mapping[str, frozenset[tuple[str, int]]]

    @classmethod
    def of(cls, lake: Lake) -> Snapshot:
        """FilesChanged where settling or compaction rewrites the ledger at this very moment."""
        with _unchanged(lake):
            ledger = ledger_shards(lake, whole=True)
        commits: set[str] = set()
        uncounted: dict[str, set[tuple[str, int]]] = {}
        for part in ledger_parts(ledger):
            commits.update(part.rows["commit_id"].unique().to_pylist())
            others = part.rows.filter(pc.not_equal(part.rows["standing"], "live"))
            for row in others.select(["commit_id", "video_id", "segment"]).to_pylist():
                uncounted.setdefault(row["commit_id"], set()).add((row["video_id"], row["segment"]))
        frozen = {commit: frozenset(segments) for commit, segments in uncounted.items()}
        return cls(lake, ledger, frozenset(commits), frozen)

    def tables(
        self, name: str, columns: list[str], commits: Collection[str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of a data table that count, file by file; of some commits only, where named.
        FilesChanged where a file has gone meanwhile."""
        wanted = self.commits if commits is None else commits
        files = [file for file in self.lake.files(name) if file.commit_id in wanted]
        keys = [key for key in ("video_id", "segment") if key not in columns]
        try:
            for file, table in self.lake.read_tables(files, [*columns, *keys]):
                if gone := self.uncounted.get(file.commit_id):
                    pairs = zip(
                        *(table[k].to_pylist() for k in ("video_id", "segment")), strict=True
                    )
                    table = table.filter(pa.array([pair not in gone for pair in pairs], pa.bool_()))
                yield table.select(columns)
        except FileNotFoundError:
            raise FilesChanged(self.lake.uri) from None


def in_one_moment(lake: Lake, read: Callable[[Snapshot], T]) -> T:
    """What `read` makes of an output; asked again, a few times, where files go under its feet."""
    for left in reversed(range(_TRIES)):
        try:
            return read(Snapshot.of(lake))
        except (FilesChanged, FileNotFoundError) as error:
            if not left:
                raise FilesChanged(lake.uri) from error
    raise AssertionError("unreachable")


@contextmanager
def _unchanged(lake: Lake) -> Iterator[None]:
    """FilesChanged where a rewriting of the ledger went on while it was read: a listing of a folder is no
    moment, and may have missed both a commit that went and the one that came for it. What a run adds
    meanwhile does not matter."""
    before = {file.commit_id for file in lake.files(LEDGER)}
    yield
    after = {file.commit_id for file in lake.files(LEDGER)}
    if before - after or any(map(is_rewrite, after - before)):
        raise FilesChanged(lake.uri)


def live_rows(lake: Lake, name: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a table that count by the ledger, with the partition columns corpus and date."""
    wanted = columns or [*TABLES[name].names, *_PARTITIONS]
    for left in reversed(range(_TRIES)):
        try:
            return _consistent(lake, name, wanted)
        except (FilesChanged, FileNotFoundError) as error:
            if not left:
                raise FilesChanged(lake.uri) from error
    raise AssertionError("unreachable")


def _consistent(lake: Lake, name: str, wanted: list[str]) -> pa.Table:
    """One reading of the ledger and of the files it names; FilesChanged where some are gone by then,
    because compaction has put others in their place."""
    with _unchanged(lake):
        live = read_ledger(lake).live
    if name == LEDGER:
        return live.select(wanted)
    keys = needing(live, name).select(["commit_id", "video_id", "segment"]).to_pylist()
    counts = {(row["commit_id"], row["video_id"], row["segment"]) for row in keys}
    parts = [table.select(wanted) for table in tables_of(lake, name, counts)]
    return pa.concat_tables([table_schema(name).empty_table().select(wanted), *parts])


def tables_of(lake: Lake, name: str, keys: set[tuple[str, str, int]]) -> Iterator[pa.Table]:
    """The rows of some segments, file by file (schema `table_schema(name)`).

    keys: (commit_id, video_id, segment). FilesChanged where a commit's file is gone.
    """
    commits = {key[0] for key in keys}
    files = [file for file in lake.files(name) if file.commit_id in commits]
    if len(files) < len(commits):
        raise FilesChanged(lake.uri)
    for file in files:
        table = lake.read_table(file)
        pairs = zip(table["video_id"].to_pylist(), table["segment"].to_pylist(), strict=True)
        mask = pa.array([(file.commit_id, *pair) in keys for pair in pairs], pa.bool_())
        table = table.filter(mask)
        for partition in _PARTITIONS:
            told = pa.array([getattr(file, partition)] * table.num_rows, pa.string())
            table = table.append_column(partition, told)
        yield table


def table_schema(name: str) -> pa.Schema:
    """A table's columns as readers see them: with the partition columns corpus and date."""
    return pa.schema([*TABLES[name], *(pa.field(p, pa.string()) for p in _PARTITIONS)])
