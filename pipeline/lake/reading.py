"""Reading an output right, also while a run goes on: what the ledger says counts, and nothing else.

Between runs a plain glob shows the same rows; these functions are for readers who cannot wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from emolake.pipeline.errors import EmolakeError, UserError, in_a_line
from emolake.pipeline.lake.layout import LEDGER, Lake
from emolake.pipeline.lake.ledger import read_ledger
from emolake.pipeline.lake.order import is_rewrite
from emolake.pipeline.lake.schema import TABLES
from emolake.pipeline.storage.files import Storage

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
    before = {file.commit_id for file in lake.files(LEDGER)}
    live = read_ledger(lake).live
    # A listing of a folder is no moment: it may have missed both a commit that went and the one that came
    # for it. What a run adds meanwhile does not matter.
    after = {file.commit_id for file in lake.files(LEDGER)}
    if before - after or any(map(is_rewrite, after - before)):
        raise FilesChanged(lake.uri)
    if name == LEDGER:
        return live.select(wanted)
    keys = live.select(["commit_id", "video_id", "segment", "n_windows"]).to_pylist()
    counts = {
        (row["commit_id"], row["video_id"], row["segment"]) for row in keys if row["n_windows"]
    }
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
