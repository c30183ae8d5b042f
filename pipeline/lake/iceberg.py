"""The tables as Apache Iceberg: each publishing brings a catalogue to what the ledger says.

Rows are copied and not registered where they stand: settling and compaction remove files, and a
snapshot of last month must still be readable. What is published already is told by the tables
themselves, segment by segment (_KEYS); so a publishing that was killed, or
comes twice, or comes after ten runs, adds what is missing, takes out what was replaced, and each
table gets one snapshot, or none where nothing changed. The `videos` table comes last.

Only the holder of the output's lease may publish.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.errors import JobFailed, UserError, in_a_line
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.ledger import Segments, gather, ledger_parts, needing
from emolake.pipeline.lake.reading import Snapshot, table_schema
from emolake.pipeline.lake.schema import TABLES
from emolake.pipeline.storage.shards import Shards, together

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table

_KEYS = {
    **dict.fromkeys(DATA_TABLES, ("video_id", "segment", "run_id")),
    # One run may do a segment twice, failed and then not; only the ledger has a row of both.
    LEDGER: ("video_id", "segment", "run_id", "finished_at"),
}
"""Columns that name one doing of one segment. They outlive settling and compaction."""
_WAREHOUSE = "_iceberg"
_OUTPUT = "emolake.output"
_SQLITE = "sqlite://"
_FLUSH_BYTES = 128 << 20
_FSSPEC_TO_ICEBERG = {
    "endpoint_url": "s3.endpoint",
    "key": "s3.access-key-id",
    "secret": "s3.secret-access-key",
    "token": "s3.session-token",
}

Key = tuple[Any, ...]
"""Values of a table's _KEYS."""


@dataclass(frozen=True)
class Published:
    """One table after publishing. snapshot_id: None where nothing had to change."""

    table: str
    snapshot_id: int | None
    segments_added: int
    segments_removed: int


def open_catalog(name: str, lake: Lake, storage_options: Mapping[str, Any]) -> Catalog:
    """`sqlite:///FILE`, with its warehouse under the output, or a catalogue that pyiceberg's own
    configuration names. UserError where there is none or pyiceberg is missing."""
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError:
        raise UserError("Iceberg needs pyiceberg: pip install 'emolake[iceberg]'") from None
    storage = {
        ours: str(storage_options[theirs])
        for theirs, ours in _FSSPEC_TO_ICEBERG.items()
        if theirs in storage_options
    }
    try:
        if name.startswith(_SQLITE):
            where = lake.fs.unstrip_protocol(lake.path(_WAREHOUSE))
            local = {"type": "sql", "uri": name, "warehouse": where}
            # The same door to storage as everywhere here, with the same AWS_* variables.
            local["py-io-impl"] = "pyiceberg.io.fsspec.FsspecFileIO"
            catalog = load_catalog("emolake", **local, **storage)
        else:
            catalog = load_catalog(name, **storage)
        # Asking for anything shows whether it is there.
        catalog.table_exists(("emolake", LEDGER))
    except Exception as error:
        raise UserError(
            f"Iceberg catalogue {name!r} cannot be opened: {in_a_line(error, 300)}"
        ) from None
    return catalog


def has_warehouse(lake: Lake) -> bool:
    """Whether tables of Iceberg stand under the output itself."""
    return bool(lake.fs.isdir(lake.path(_WAREHOUSE)))


def publish(
    lake: Lake,
    catalog: Catalog,
    namespace: str,
    run_id: str,
    fence: Callable[[], None],
    *,
    forgets: bool = False,
) -> list[Published]:
    """Brings the catalogue's three tables to what the ledger says. Memory holds a part of the ledger and of
    the rows that are added, and the keys of what is replaced.

    fence: called before each commit; raises where the lease is lost. forgets: each table gets a snapshot,
    though nothing may have changed, so that a publisher that slept, and is about to add what is forgotten,
    is seen to be late. JobFailed where another writer changed a table meanwhile; UserError where the tables
    are another output's.
    """
    if not all(map(str.strip, namespace.split("."))):
        raise UserError(f"--namespace {namespace!r} is no name of a namespace")
    catalog.create_namespace_if_not_exists(namespace)
    snapshot = Snapshot.of(lake)
    tables = [_table(catalog, (namespace, name), lake) for name in (*DATA_TABLES, LEDGER)]
    return [_publish(snapshot, table, run_id, fence, forgets) for table in tables]


def _publish(
    lake: Snapshot,
    table: Table,
    run_id: str,
    fence: Callable[[], None],
    forgets: bool,
) -> Published:
    from pyiceberg.exceptions import CommitFailedException

    name = table.name()[-1]
    if forgets and has_warehouse(lake.lake):
        _sweep(lake.lake, table)
    tasks = list(table.scan().plan_files())
    needed = _Change.of(lake, name, table, tasks)
    added = [
        file
        for rows in _batched(lake.tables(name, commits=needed.lacking, but=needed.there_already))
        for file in _data_files(table, rows)
    ]
    if not added and not needed.gone and not forgets:  # a track without windows has no row
        return Published(name, None, 0, 0)
    change = table.transaction()
    told = {"emolake.run-id": run_id, "emolake.output": lake.lake.uri}
    with change.update_snapshot(snapshot_properties=told).overwrite() as snapshot:
        for at, gone in needed.gone.items():
            snapshot.delete_data_file(tasks[at].file)
            rows = _read(table, tasks[at], table.schema().column_names)
            kept = rows.filter(pa.array([key not in gone for key in _key_list(rows, name)]))
            for file in _data_files(table, kept) if kept.num_rows else ():
                snapshot.append_data_file(file)
        for file in added:
            snapshot.append_data_file(file)
    fence()
    try:
        change.commit_transaction()
    except CommitFailedException:
        told_as = ".".join(table.name())
        raise JobFailed(f"Iceberg table {told_as} was changed meanwhile; publish again") from None
    current = table.refresh().current_snapshot()
    assert current is not None
    replaced = len(set().union(*needed.gone.values()))
    return Published(name, current.snapshot_id, needed.segments_added, replaced)


@dataclass(frozen=True)
class _Change:
    """What makes a table say what the ledger says. lacking: commits with segments that the table lacks;
    there_already: what of those it has; gone: keys to be taken out, by the number of the file."""

    lacking: set[str]
    there_already: Segments
    segments_added: int
    gone: dict[int, set[Key]]

    @classmethod
    def of(cls, lake: Snapshot, name: str, table: Table, tasks: list[FileScanTask]) -> _Change:
        wanted, held = _wanted(lake, name), _held(table, name, tasks)
        lacking: set[str] = set()
        gone: dict[int, set[Key]] = {}
        segments_added = 0
        for part, of_table in together(wanted, held):
            keys, keys_there = _key_list(part, name), _key_list(of_table, name)
            shall, there = set(keys), set(keys_there)
            for key, commit_id in zip(keys, part["commit_id"].to_pylist(), strict=True):
                if key not in there:
                    lacking.add(commit_id)
                    segments_added += 1
            for key, at in zip(keys_there, of_table["file"].to_pylist(), strict=True):
                if key not in shall:
                    gone.setdefault(at, set()).add(key)
        there_already: Segments = {}
        for part, of_table in together(wanted, held):
            part = part.filter(pc.is_in(part["commit_id"], pa.array(lacking, pa.string())))
            there = set(_key_list(of_table, name))
            known = [key in there for key in _key_list(part, name)]
            gather(there_already, part.filter(pa.array(known, pa.bool_())))
        return cls(lacking, there_already, segments_added, gone)


def _wanted(lake: Snapshot, name: str) -> Shards:
    """The segments that a table shall hold, with their commits in the lake."""
    columns = ["uri", *_KEYS[name], "commit_id"]
    return Shards.of(
        pa.schema([TABLES[LEDGER].field(column) for column in columns]),
        (needing(part.live, name).select(columns) for part in ledger_parts(lake.ledger)),
    )


def _held(table: Table, name: str, tasks: list[FileScanTask]) -> Shards:
    """The segments that a table holds, each with the number of its file."""
    columns = ["uri", *_KEYS[name]]
    schema = pa.schema([TABLES[LEDGER].field(column) for column in columns])
    shards = Shards(schema.append(pa.field("file", pa.int64())))
    for at, task in enumerate(tasks):
        once = _read(table, task, columns).group_by(columns).aggregate([])
        number = pa.array([at] * once.num_rows, pa.int64())
        shards.add(once.select(columns).cast(schema).append_column("file", number))
    return shards


def _table(catalog: Catalog, identifier: tuple[str, str], lake: Lake) -> Table:
    """The table, made where it is not there, widened where the lake's has columns more. UserError where it
    holds what another output says: whatever that has not said would go."""
    from pyiceberg.exceptions import NoSuchTableError

    schema = table_schema(identifier[1])
    ours = str(lake.fs.unstrip_protocol(lake.root))
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        # A commit that lost a race must fail: tried again by itself it would double its rows.
        once = {"commit.retry.num-retries": "0", "write.parquet.compression-codec": "zstd"}
        with (
            catalog.create_table_transaction(
                identifier, schema, properties=once | {_OUTPUT: ours}
            ) as change,
            change.update_spec() as spec,
        ):
            spec.add_identity("corpus").add_identity("date")
        return catalog.load_table(identifier)
    theirs = table.properties.get(_OUTPUT, ours)
    if theirs != ours:
        raise UserError(
            f"Iceberg table {'.'.join(identifier)} is of the output {theirs}; choose another --namespace for "
            f"{lake.uri} (or, if it has moved, set the table's property {_OUTPUT})"
        )
    if _OUTPUT not in table.properties:
        with table.transaction() as change:
            change.set_properties({_OUTPUT: ours})
        table = catalog.load_table(identifier)
    if set(schema.names) - set(table.schema().column_names):
        with table.update_schema() as update:
            update.union_by_name(schema)
        table = catalog.load_table(identifier)
    return table


def _sweep(lake: Lake, table: Table) -> None:
    """Removes data files under the output that no snapshot names: those of a publishing that was killed. Only
    one publishes at a time, so none of them is about to be named."""
    root = str(lake.fs._strip_protocol(table.location()))
    if not root.startswith(lake.path(_WAREHOUSE)):
        return
    named = {
        str(lake.fs._strip_protocol(path))
        for path in table.inspect.all_files()["file_path"].to_pylist()
    }
    try:
        there = lake.fs.find(f"{root}/data")
    except FileNotFoundError:
        return
    lake.remove(path for path in there if path not in named)


def _read(table: Table, task: FileScanTask, columns: list[str]) -> pa.Table:
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan

    scan = ArrowScan(table.metadata, table.io, table.schema().select(*columns), AlwaysTrue())
    return scan.to_table([task])


def _data_files(table: Table, rows: pa.Table) -> Iterator[DataFile]:
    """Writes rows as data files of the table, one or more a partition.

    pyiceberg offers this step only inside append() and overwrite(), and those would make a snapshot
    of the deletion and another of the addition.
    """
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    yield from _dataframe_to_data_files(
        table.metadata, rows, table.io, uuid.uuid4(), itertools.count()
    )


def _batched(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Small tables together, so that many commits become few files; bounded by memory."""
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        held.append(table)
        size += table.nbytes
        if size >= _FLUSH_BYTES:
            yield pa.concat_tables(held).combine_chunks()
            held, size = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _key_list(rows: pa.Table, name: str) -> list[Key]:
    return list(zip(*(rows[key].to_pylist() for key in _KEYS[name]), strict=True))
