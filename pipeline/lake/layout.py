"""Where things stand under an output, and the tables as files."""

from __future__ import annotations

import io
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from emolake.pipeline.errors import Damaged, UserError, in_a_line
from emolake.pipeline.lake.schema import TABLES, schema_of, sort_keys
from emolake.pipeline.storage.files import (
    PARTIAL_SUFFIX,
    Storage,
    abort_upload,
    create_exclusively,
    is_local,
    remove_all,
    speaking_os_errors,
    unfinished_uploads,
    write_whole,
)
from emolake.pipeline.storage.names import unsigned
from emolake.pipeline.storage.traffic import count

DATA_TABLES = ("annotations", "tracks")
LEDGER = "videos"
LABELS = "labels"
RUNS = "_runs"
LEASES = "_lease"
FORGOTTEN = "_forgotten"
_ROW_GROUP = 128 * 1024
_DATA_FILE = re.compile(
    r"/corpus=(?P<corpus>[^/]+)/date=(?P<date>[^/]+)/"
    r"(?P<commit_id>(L\d{9}-\d{3}-)?[0-9a-f]{16}-[0-9a-f]{8})\.parquet"
)
"""By its name within a table's folder a file is ours, and nobody else's is read or removed."""
_PARTIAL = re.compile(
    r"/corpus=[^/]+/date=[^/]+/\.(?P<commit_id>[^/]+)\.parquet\.[0-9a-f]+"
    + re.escape(PARTIAL_SUFFIX)
)
_RECORD = re.compile(r"/[^/]+/run\.json")
_PARTIAL_RECORD = re.compile(r"/[^/]+/\.run\.json\.[0-9a-f]+" + re.escape(PARTIAL_SUFFIX))
_AT_ONCE = 16  # requests
_AHEAD_BYTES = 64 << 20  # of files; what they hold is some times that


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a commit. size: in bytes, as listed. What else is told of it stands in its path: a
    compaction holds hundreds of thousands of these."""

    path: str
    size: int

    @property
    def table(self) -> str:
        return self.path.split("/")[-4]

    @property
    def corpus(self) -> str:
        return self.path.split("/")[-3].removeprefix("corpus=")

    @property
    def date(self) -> str:
        return self.path.split("/")[-2].removeprefix("date=")

    @property
    def commit_id(self) -> str:
        return self.path.rpartition("/")[2].removesuffix(".parquet")


@dataclass(frozen=True)
class Lake:
    """An output: a file system and the path in it. uri: as it is told, without what opens it."""

    uri: str
    fs: AbstractFileSystem
    root: str

    def __reduce__(self) -> tuple[Any, ...]:
        # fsspec makes file systems anew where they are sent to; theirs is to speak as ours does.
        return _received, (self.uri, self.fs, self.root)

    @classmethod
    def at(cls, uri: str, storage: Storage) -> Lake:
        """UserError where no store can be had for it."""
        if "\0" in uri:
            raise UserError(f"output {uri!r} is no name: it holds a NUL")
        try:
            fs, path = storage.locate(uri)
        except OSError as error:
            told = in_a_line(error, 300)
            raise UserError(f"{in_a_line(uri)} cannot be reached: {told}") from None
        return cls(unsigned(uri), fs, path.rstrip("/"))

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def data_path(self, table: str, corpus: str, date: str, commit_id: str) -> str:
        return self.path(table, f"corpus={corpus}", f"date={date}", f"{commit_id}.parquet")

    def files(self, table: str) -> list[DataFile]:
        """All files of a table by listing, unfinished ones left out."""
        files = [
            DataFile(path, size)
            for path, size in self._found(self.path(table))
            if self._within(table, path, _DATA_FILE)
        ]
        return sorted(files, key=lambda f: f.path)

    def _within(self, folder: str, path: str, name: re.Pattern[str]) -> re.Match[str] | None:
        """A file of ours in a folder, and nothing that lies deeper, such as a copy of an output."""
        return name.fullmatch(path.lstrip("/").removeprefix(self.path(folder).lstrip("/")))

    def _found(self, folder: str) -> Iterator[tuple[str, int]]:
        """All files under a folder with their sizes, none where there is no such folder. Of a local one name
        by name: fsspec makes a dictionary of a kilobyte for each, and an output may have a million."""
        if is_local(self.fs):
            for inner, _, names in os.walk(folder, onerror=_unless_gone, followlinks=True):
                for name in names:
                    path = f"{inner}/{name}"
                    with suppress(FileNotFoundError):  # it went meanwhile
                        yield path, os.stat(path).st_size  # noqa: PTH116  (a third of the time)
            return
        self.fs.invalidate_cache()
        with suppress(FileNotFoundError):
            found = self.fs.find(folder, detail=True)
            yield from ((path, told["size"] or 0) for path, told in found.items())

    def partial_files(self, tables: Iterable[str] = TABLES) -> list[tuple[str, str]]:
        """Tables' files written aside that have no name yet: path and commit id."""
        if not is_local(self.fs):
            return []
        return [
            (path, match["commit_id"])
            for table in tables
            for path, _ in self._found(self.path(table))
            if (match := self._within(table, path, _PARTIAL)) is not None
        ]

    def run_records(self) -> list[str]:
        """Paths of the run.json of all runs."""
        found = (path for path, _ in self._found(self.path(RUNS)))
        return sorted(path for path in found if self._within(RUNS, path, _RECORD))

    def partial_records(self) -> list[str]:
        """The same of runs' records. Only who holds the output writes them."""
        if not is_local(self.fs):
            return []
        found = (path for path, _ in self._found(self.path(RUNS)))
        return [path for path in found if self._within(RUNS, path, _PARTIAL_RECORD)]

    def abort_uploads(self, dead: Callable[[str], bool]) -> None:
        """Gives up what was to be a file of some commits and came only half to an S3 store, where it is
        invisible and billed. dead: by commit id."""
        for table in TABLES:
            for path, upload_id in unfinished_uploads(self.fs, self.path(table)):
                match = self._within(table, path, _DATA_FILE)
                if match is not None and dead(match["commit_id"]):
                    abort_upload(self.fs, path, upload_id)

    def write_table(self, path: str, table: pa.Table) -> None:
        """Writes one Parquet file, zstd, that appears whole. table: in the order of its sort keys.

        By its statistics a reader skips the row groups that cannot hold what it looks for; Bloom filters
        for the rest were measured, and saved nothing (docs/benchmarks.md).
        """
        write_whole(self.fs, path, _encoded(table))

    def create_table(self, path: str, table: pa.Table) -> bool:
        """The same, unless another stands there: then it is left and the answer is False."""
        return create_exclusively(self.fs, path, _encoded(table))

    def read_tables(
        self, files: Iterable[DataFile], columns: list[str] | None = None
    ) -> Iterator[tuple[DataFile, pa.Table]]:
        """Files with their rows, in order. From an object store the bytes of some come ahead; they are
        decoded as they are wanted, since in threads that takes small files twice as long."""
        if is_local(self.fs):
            yield from ((file, self.read_table(file, columns)) for file in files)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            ahead: deque[tuple[DataFile, Future[bytes]]] = deque()
            try:
                for file in files:
                    while ahead and (
                        len(ahead) > _AT_ONCE
                        or file.size + sum(f.size for f, _ in ahead) > _AHEAD_BYTES
                    ):
                        first, data = ahead.popleft()
                        yield first, _decoded(first, data.result(), columns)
                    ahead.append((file, pool.submit(self._bytes, file)))
                while ahead:
                    first, data = ahead.popleft()
                    yield first, _decoded(first, data.result(), columns)
            finally:
                for _, data in ahead:
                    data.cancel()

    def read_table(self, file: DataFile, columns: list[str] | None = None) -> pa.Table:
        """A file's rows; a column that came to the schema later is null."""
        return _decoded(file, self._bytes(file), columns)

    def _bytes(self, file: DataFile) -> bytes:
        # One request, since the files are small by design: s3fs asks for the size first unless a start is
        # given.
        data: bytes = self.fs.cat_file(file.path, start=0)
        count(read=len(data))
        return data

    def remove(self, paths: Iterable[str]) -> None:
        """Those that are there go; in no order."""
        remove_all(self.fs, paths)

    def cannot_write(self, error: OSError) -> str:
        """One line for an output that stopped taking writes in mid-run."""
        words = " ".join(str(error).split())[:200]
        return f"output {self.uri} cannot be written: {words}; mend it, the same command resumes"


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is not taken for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _received(uri: str, fs: AbstractFileSystem, root: str) -> Lake:
    return Lake(uri, speaking_os_errors(fs), root)


def _decoded(file: DataFile, data: bytes, columns: list[str] | None) -> pa.Table:
    schema = schema_of(file.table)
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
            if not parquet.schema_arrow.equals(schema_of(file.table)):
                _check_columns(parquet.schema_arrow)  # a thousand times as slow
            wanted = None  # asking for each by name takes a small file twice as long
            if columns is not None:
                there = set(parquet.schema_arrow.names)
                wanted = [name for name in columns if name in there]
            table = parquet.read(wanted, use_threads=len(data) > _ROW_GROUP)
        table = table.replace_schema_metadata()
        if table.schema.equals(schema):
            return table
        for field in schema:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return table.select(schema.names).cast(schema)
    except pa.ArrowMemoryError:
        raise  # says nothing of the file
    except (
        pa.ArrowException,
        OSError,
        ValueError,
    ) as error:  # whichever part of it meets the fault
        raise Damaged(
            f"{file.path} is damaged ({in_a_line(error, 200)}); restore it, or remove the files of its name "
            "from all three tables: the next run does their videos again"
        ) from None


_COLUMNS = b"emolake.columns"


def _check_columns(schema: pa.Schema) -> None:
    """ValueError where columns are not called as they were. Pages have checksums of Parquet's own, the names
    have none, and one that cannot be read as itself would pass for a column that came later."""
    told = (schema.metadata or {}).get(_COLUMNS)
    if told is not None and not set(told.split()) <= set(_checksums(schema).split()):
        raise ValueError("its columns are not those that were written")


def _checksums(fields: Iterable[pa.Field]) -> bytes:
    """Of each column by itself: who writes a file anew may add some, and change their order."""
    return " ".join(f"{zlib.crc32(_spelled(field).encode()):08x}" for field in fields).encode()


def _spelled(field: pa.Field) -> str:
    """A field's name and those within it; what Parquet itself calls otherwise than Arrow is left out."""
    kind = field.type
    inner: list[pa.Field] = []
    if pa.types.is_struct(kind):
        inner = [kind.field(k) for k in range(kind.num_fields)]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = [pa.field("", kind.value_type)]
    elif pa.types.is_map(kind):
        inner = [pa.field("", kind.key_type), pa.field("", kind.item_type)]
    return f"{field.name}:{' '.join(map(_spelled, inner)) or str(kind).removeprefix('large_')}"


def _encoded(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({_COLUMNS: _checksums(table.schema)})
    order = [(key, "ascending") for key in sort_keys(table.schema)]
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        write_statistics=True,
        write_page_index=True,
        write_page_checksum=True,
        row_group_size=_ROW_GROUP,
        sorting_columns=pq.SortingColumn.from_ordering(table.schema, order),
    )
    return buffer.getvalue()
