"""Where things stand under an output, and the tables as files."""

from __future__ import annotations

import io
import re
import secrets
import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from emolake.pipeline.lake.schema import TABLES, sort_keys
from emolake.pipeline.storage.files import PARTIAL_SUFFIX, Storage, is_local, write_whole
from emolake.pipeline.storage.traffic import count

DATA_TABLES = ("annotations", "tracks")
LEDGER = "videos"
RUNS = "_runs"
LEASES = "_lease"
_ROW_GROUP = 128 * 1024
_DATA_FILE = re.compile(
    r"/(?P<table>annotations|tracks|videos)/corpus=(?P<corpus>[^/]+)/date=(?P<date>[^/]+)/"
    r"(?P<commit_id>[^/.][^/]*)\.parquet$"
)


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a commit."""

    path: str
    table: str
    corpus: str
    date: str
    commit_id: str


@dataclass(frozen=True)
class Lake:
    """An output: a file system and the path in it."""

    uri: str
    fs: AbstractFileSystem
    root: str

    @classmethod
    def at(cls, uri: str, storage: Storage) -> Lake:
        fs, path = storage.locate(uri)
        return cls(uri, fs, path.rstrip("/"))

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def data_path(self, table: str, corpus: str, date: str, commit_id: str) -> str:
        return self.path(table, f"corpus={corpus}", f"date={date}", f"{commit_id}.parquet")

    def files(self, table: str) -> list[DataFile]:
        """All files of a table by listing, unfinished ones left out."""
        self.fs.invalidate_cache()
        try:
            paths = self.fs.find(self.path(table))
        except FileNotFoundError:
            return []
        files = []
        for path in paths:
            match = _DATA_FILE.search("/" + path.lstrip("/"))
            if match is not None:
                files.append(DataFile(path=path, **match.groupdict()))
        return sorted(files, key=lambda f: f.path)

    def partial_files(self) -> list[str]:
        """Files written aside that never got their name."""
        if not is_local(self.fs):
            return []
        return [
            path
            for table in TABLES
            for path in self.fs.find(self.path(table))
            if path.endswith(PARTIAL_SUFFIX)
        ]

    def write_table(self, path: str, table: pa.Table) -> None:
        """Writes one Parquet file, zstd, that appears whole. table: in the order of its sort keys.

        By its statistics a reader skips the row groups that cannot hold what it looks for; Bloom filters
        for the rest were measured, and saved nothing (docs/benchmarks.md).
        """
        buffer = io.BytesIO()
        order = [(key, "ascending") for key in sort_keys(table.schema)]
        pq.write_table(
            table,
            buffer,
            compression="zstd",
            write_statistics=True,
            write_page_index=True,
            row_group_size=_ROW_GROUP,
            sorting_columns=pq.SortingColumn.from_ordering(table.schema, order),
        )
        write_whole(self.fs, path, buffer.getvalue())

    def read_table(self, file: DataFile, columns: list[str] | None = None) -> pa.Table:
        """A file's rows; a column that came to the schema later is null."""
        # cat_file is one request; the files are small by design, so no ranged reads are needed.
        data = self.fs.cat_file(file.path)
        count(read=len(data))
        table = pq.read_table(io.BytesIO(data), columns=columns)
        schema = TABLES[file.table]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        for field in schema:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return table.select(schema.names).cast(schema)

    def remove(self, path: str) -> None:
        if self.fs.exists(path):
            self.fs.rm_file(path)

    def cannot_write(self, error: OSError) -> str:
        """One line for an output that stopped taking writes in mid-run."""
        words = " ".join(str(error).split())[:200]
        return f"output {self.uri} cannot be written: {words}; mend it, the same command resumes"


def new_commit_id() -> str:
    """Unique, and sortable by the time it was made: 16 hex digits of nanoseconds, 8 at random."""
    return f"{time.time_ns():016x}-{secrets.token_hex(4)}"
