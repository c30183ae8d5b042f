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

from emolake.pipeline.errors import JobFailed, UserError, in_a_line
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.ledger import needing, read_ledger
from emolake.pipeline.lake.reading import table_schema, tables_of

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
_SQLITE = "sqlite://"
_FLUSH_BYTES = 256 << 20
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


def publish(
    lake: Lake, catalog: Catalog, namespace: str, run_id: str, fence: Callable[[], None]
) -> list[Published]:
    """Brings the catalogue's three tables to what the ledger says.

    fence: called before each commit; raises where the lease is lost. JobFailed where another writer
    changed a table meanwhile.
    """
    catalog.create_namespace_if_not_exists(namespace)
    live = read_ledger(lake).live
    published = []
    for name in (*DATA_TABLES, LEDGER):
        rows = (live if name == LEDGER else needing(live, name)).select(
            [*_KEYS[LEDGER], "commit_id"]
        )
        wanted = {
            tuple(row[key] for key in _KEYS[name]): row["commit_id"] for row in rows.to_pylist()
        }
        published.append(_publish(lake, catalog, (namespace, name), wanted, run_id, fence))
    return published


def _publish(
    lake: Lake,
    catalog: Catalog,
    identifier: tuple[str, str],
    wanted: dict[Key, str],
    run_id: str,
    fence: Callable[[], None],
) -> Published:
    """wanted: the segments that the table shall hold -> their commits in the lake."""
    from pyiceberg.exceptions import CommitFailedException

    name = identifier[1]
    table = _table(catalog, identifier)
    there: set[Key] = set()
    touched: list[tuple[FileScanTask, set[Key]]] = []
    for task in table.scan().plan_files():
        held = set(_key_list(_read(table, task, list(_KEYS[name])), name))
        if held - wanted.keys():
            touched.append((task, held))
        there |= held
    missing = {(commit, *key[:2]) for key, commit in wanted.items() if key not in there}
    gone = there - wanted.keys()
    added = [
        file
        for rows in _batched(tables_of(lake, name, missing))
        for file in _data_files(table, rows)
    ]
    if not added and not gone:  # a track without windows has no row
        return Published(name, None, 0, 0)
    change = table.transaction()
    told = {"emolake.run-id": run_id, "emolake.output": lake.uri}
    with change.update_snapshot(snapshot_properties=told).overwrite() as snapshot:
        for task, held in touched:
            snapshot.delete_data_file(task.file)
            if held - gone:
                rows = _read(table, task, table.schema().column_names)
                kept = rows.filter(pa.array([key not in gone for key in _key_list(rows, name)]))
                for file in _data_files(table, kept):
                    snapshot.append_data_file(file)
        for file in added:
            snapshot.append_data_file(file)
    fence()
    try:
        change.commit_transaction()
    except CommitFailedException:
        told_as = ".".join(identifier)
        raise JobFailed(f"Iceberg table {told_as} was changed meanwhile; publish again") from None
    current = table.refresh().current_snapshot()
    assert current is not None
    return Published(name, current.snapshot_id, len(missing), len(gone))


def _table(catalog: Catalog, identifier: tuple[str, str]) -> Table:
    """The table, made where it is not there, widened where the lake's has columns more."""
    from pyiceberg.exceptions import NoSuchTableError

    schema = table_schema(identifier[1])
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        # A commit that lost a race must fail: tried again by itself it would double its rows.
        once = {"commit.retry.num-retries": "0", "write.parquet.compression-codec": "zstd"}
        with (
            catalog.create_table_transaction(identifier, schema, properties=once) as change,
            change.update_spec() as spec,
        ):
            spec.add_identity("corpus").add_identity("date")
        return catalog.load_table(identifier)
    if set(schema.names) - set(table.schema().column_names):
        with table.update_schema() as update:
            update.union_by_name(schema)
        table = catalog.load_table(identifier)
    return table


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
    for table in tables:
        held.append(table)
        if sum(part.nbytes for part in held) >= _FLUSH_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _key_list(rows: pa.Table, name: str) -> list[Key]:
    return list(zip(*(rows[key].to_pylist() for key in _KEYS[name]), strict=True))
