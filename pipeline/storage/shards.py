"""Tables of any length in bounded memory: rows go by their uri (or another key) to one of a fixed number of
parts, which stand in Arrow files of a temporary folder once there are too many to hold."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

SHARDS = 64
IN_MEMORY_ROWS = 100_000
_SMALL_ONES = 256
_AT_ONCE = 16_384  # rows that go to their parts together: dealing out a few costs as much as many


class Joined:
    """Tables to be one some day. A small one holds kilobytes beside its rows: of many a few are made."""

    def __init__(self) -> None:
        self.nbytes = self.num_rows = 0
        self._joined: list[pa.Table] = []
        self._small: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self.nbytes += table.nbytes
        self.num_rows += table.num_rows
        self._small.append(table)
        if len(self._small) == _SMALL_ONES:
            self._joined.append(pa.concat_tables(self._small).combine_chunks())
            self._small = []

    @property
    def tables(self) -> list[pa.Table]:
        return [*self._joined, *self._small]


class Shards:
    """Rows of one schema, in the order in which they were added; in several parts by the strings of the
    column `key`, once there are more than `IN_MEMORY_ROWS` of them, in that order within each part."""

    def __init__(self, schema: pa.Schema, key: str = "uri") -> None:
        self.schema = schema
        self.key = key
        self.num_rows = 0
        self._held = Joined()
        self._folder: TemporaryDirectory[str] | None = None
        self._open = ExitStack()
        self._writers: list[pa.ipc.RecordBatchStreamWriter] = []

    @classmethod
    def of(cls, schema: pa.Schema, tables: Iterable[pa.Table]) -> Shards:
        shards = cls(schema)
        for table in tables:
            shards.add(table)
        return shards

    def add(self, table: pa.Table) -> None:
        """May not follow the first reading."""
        self.num_rows += table.num_rows
        self._held.add(table)
        if self._folder is None and self.num_rows > IN_MEMORY_ROWS:
            self.spill()
        elif self._folder is not None and self._held.num_rows >= _AT_ONCE:
            self._write_held()

    @property
    def spilled(self) -> bool:
        return self._folder is not None

    def spill(self) -> None:
        """To disk, few rows or many."""
        if self._folder is not None:
            return
        self._folder = TemporaryDirectory(prefix="emolake-")
        for k in range(SHARDS):
            sink = self._open.enter_context(pa.OSFile(str(self._path(k)), "wb"))
            writer = pa.ipc.new_stream(sink, self.schema)
            self._writers.append(self._open.enter_context(writer))
        self._write_held()

    def parts(self) -> Iterator[pa.Table]:
        """All rows; those of one key together."""
        if self._folder is None:
            yield pa.concat_tables([self.schema.empty_table(), *self._held.tables])
            return
        self._write_held()
        self._open.close()
        for k in range(SHARDS):
            with pa.memory_map(str(self._path(k))) as source:
                yield pa.ipc.open_stream(source).read_all()

    def _path(self, shard: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{shard}.arrow"

    def _write_held(self) -> None:
        if not self._held.num_rows:
            return
        table = pa.concat_tables(self._held.tables).combine_chunks()
        self._held = Joined()
        chosen = pa.array([_shard(key) for key in table[self.key].to_pylist()], pa.int32())
        for k, writer in enumerate(self._writers):
            part = table.filter(pa.compute.equal(chosen, k))
            if part.num_rows:
                writer.write_table(part)


def together(one: Shards, other: Shards) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The parts of both side by side: what has one uri stands in one pair."""
    if one.spilled or other.spilled:
        one.spill()
        other.spill()
    yield from zip(one.parts(), other.parts(), strict=True)


def _shard(key: str) -> int:
    return zlib.crc32(key.encode()) % SHARDS
