"""The tables as Apache Iceberg: each publishing brings a catalogue to what the ledger says.

Rows are copied and not registered where they stand: settling and compaction remove files, and a
snapshot of last month must still be readable. What is published already is told by the tables
themselves, segment by segment (_KEYS); so a publishing that was killed, or
comes twice, or comes after ten runs, adds what is missing, takes out what was replaced, and each
table gets one snapshot, or none where nothing changed. The `videos` table comes last: of what it does
not tell yet the other tables are written anew.

Only the holder of the output's lease may publish.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from emolake.pipeline.errors import JobFailed, UserError, in_a_line
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.ledger import Segments, gather, ledger_parts, needing
from emolake.pipeline.lake.reading import FilesChanged, Snapshot, table_schema
from emolake.pipeline.lake.schema import TABLES
from emolake.pipeline.storage.files import is_local
from emolake.pipeline.storage.shards import Joined, Shards, together

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
_OWN_PLACE = re.compile(r"-[0-9a-f]{8}$")
"""As `_own_location` ends: nothing but one table's files is there."""
_OUTPUT = "emolake.output"
_ONCE = {"commit.retry.num-retries": "0"}
"""A commit that lost a race must fail: tried again by itself it would double its rows."""
_SQLITE = "sqlite://"
_FLUSH_BYTES = 64 << 20
_NUMBERS = itertools.count()  # of data files
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
            local = {"type": "sql", "uri": name, "warehouse": _warehouse(lake)}
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
    is seen to be late; and the files of killed publishings go. JobFailed where another writer changed a
    table meanwhile; UserError as of `check_tables`.
    """
    check_tables(lake, catalog, namespace)
    catalog.create_namespace_if_not_exists(namespace)
    snapshot = Snapshot.of(lake)
    tables = [_table(catalog, (namespace, name), lake) for name in (*DATA_TABLES, LEDGER)]
    wanted = _wanted(snapshot, tables[-1])
    return [_publish(snapshot, table, run_id, fence, forgets, wanted) for table in tables]


def check_tables(lake: Lake, catalog: Catalog, namespace: str, *, published: bool = False) -> None:
    """Before anything is written: UserError where a namespace has no name, or holds tables that say what
    another output says: whatever that has not said would go. published: also where none of them is there."""
    if not all(map(str.strip, namespace.split("."))) or "/" in namespace:
        raise UserError(f"--namespace {namespace!r} is no name of a namespace")
    identifiers = [(namespace, name) for name in (*DATA_TABLES, LEDGER)]
    there = [identifier for identifier in identifiers if catalog.table_exists(identifier)]
    if published and not there:
        raise UserError(
            f"the catalogue has no tables in {namespace}; name the --catalog and --namespace that "
            f"{lake.uri} was published to"
        )
    for identifier in there:
        table = catalog.load_table(identifier)
        theirs = _output_of(table)
        ours = _column_names(table) <= set(table_schema(identifier[1]).names)
        if theirs is None and table.current_snapshot() is None and ours:
            continue  # it was made, and its maker died
        if theirs is None or _place(lake, theirs) != _place(lake, lake.root):
            raise UserError(
                f"Iceberg table {'.'.join(identifier)} is of {theirs or 'another writer'}; choose another "
                f"--namespace for {lake.uri} (or, if it has moved, set the table's property {_OUTPUT})"
            )


def _output_of(table: Table) -> str | None:
    """The output whose rows a table holds; older versions of this program told it with each snapshot."""
    current = table.current_snapshot()
    summary = current.summary.additional_properties if current and current.summary else {}
    return table.properties.get(_OUTPUT) or summary.get(_OUTPUT)


def _column_names(table: Table) -> set[str]:
    return {field.name for field in table.schema().fields}


def _place(lake: Lake, path: str) -> str:
    """One name for a place in an output's file system, however it is spelt."""
    plain = str(lake.fs._strip_protocol(path)).rstrip("/")
    return str(lake.fs.unstrip_protocol(os.path.realpath(plain) if is_local(lake.fs) else plain))


def _publish(
    lake: Snapshot,
    table: Table,
    run_id: str,
    fence: Callable[[], None],
    forgets: bool,
    wanted: Shards,
) -> Published:
    from pyiceberg.exceptions import CommitFailedException

    name = table.name()[-1]
    files = _files_below(lake.lake, table) if forgets else {}
    tasks = list(table.scan().plan_files())
    needed = _Change.of(wanted, name, _held(table, name, tasks))
    mark = uuid.uuid4()
    committing = False
    try:
        added = [
            file
            for rows in _batched(
                lake.tables(name, commits=needed.lacking, but=needed.there_already)
            )
            for file in _data_files(table, rows, mark)
        ]
        if not added and not needed.gone and not forgets:  # a track without windows has no row
            return Published(name, None, 0, 0)
        change = table.transaction()
        told = {"emolake.run-id": run_id, _OUTPUT: lake.lake.uri}
        with change.update_snapshot(snapshot_properties=told).overwrite(mark) as made:
            for at, gone in needed.gone.items():
                made.delete_data_file(tasks[at].file)
                rows = _read(table, tasks[at], table.schema().column_names)
                kept = rows.filter(pa.array([key not in gone for key in _key_list(rows, name)]))
                for file in _data_files(table, kept, mark) if kept.num_rows else ():
                    made.append_data_file(file)
            for file in added:
                made.append_data_file(file)
        fence()
        committing = True
        change.commit_transaction()
    except BaseException as error:
        if isinstance(error, CommitFailedException) or not committing:
            with suppress(Exception):  # what went wrong before is what there is to tell
                _withdraw(lake.lake, table, mark)
        if isinstance(error, CommitFailedException):
            told_as = ".".join(table.name())
            raise JobFailed(
                f"Iceberg table {told_as} was changed meanwhile; run the same command again"
            ) from None
        if isinstance(error, FilesChanged):
            fence()
        raise
    current = table.refresh().current_snapshot()
    assert current is not None
    if files:
        # Of what stood there before this commit, nobody can name any more what is not named now: a publisher
        # that slept meanwhile comes too late.
        named = _named_files(lake.lake, table)
        lake.lake.remove(path for place, path in files.items() if place not in named)
    replaced = len(set().union(*needed.gone.values()))
    return Published(name, current.snapshot_id, needed.segments_added, replaced)


def _withdraw(lake: Lake, table: Table, mark: uuid.UUID) -> None:
    """Removes what a publishing has written that no snapshot will ever name: what it tells may be forgotten
    by now. A commit whose answer was lost may have gone in."""
    named = _named_files(lake, table.refresh())
    written = {at: path for at, path in _files_below(lake, table).items() if str(mark) in path}
    lake.remove(path for at, path in written.items() if at not in named)


@dataclass(frozen=True)
class _Change:
    """What makes a table say what the ledger says. lacking: commits with segments that the table lacks;
    there_already: what of those it has; gone: keys to be taken out, by the number of the file."""

    lacking: set[str]
    there_already: Segments
    segments_added: int
    gone: dict[int, set[Key]]

    @classmethod
    def of(cls, wanted: Shards, name: str, held: Shards) -> _Change:
        lacking: set[str] = set()
        gone: dict[int, set[Key]] = {}
        segments_added = 0
        for part, of_table in together(wanted, held):
            keys, commits, shall, there = _compared(part, of_table, name)
            for key, commit_id in zip(keys, commits, strict=True):
                if key not in there:
                    lacking.add(commit_id)
                    segments_added += 1
            files = of_table["file"].to_pylist()
            for key, at in zip(_key_list(of_table, name), files, strict=True):
                if key not in shall or key not in there:
                    gone.setdefault(at, set()).add(key)
        there_already: Segments = {}
        for part, of_table in together(wanted, held):
            keys, commits, _, there = _compared(part, of_table, name)
            known = [
                key in there and commit_id in lacking
                for key, commit_id in zip(keys, commits, strict=True)
            ]
            gather(there_already, needing(part, name).filter(pa.array(known, pa.bool_())))
        return cls(lacking, there_already, segments_added, gone)


def _compared(
    wanted: pa.Table, held: pa.Table, name: str
) -> tuple[list[Key], list[str], set[Key], set[Key]]:
    """Of a part: the keys that a table shall hold and their commits; the same as a set; and what it has of
    those. One run may do a segment twice: rows of which the published ledger does not tell are as good as
    missing."""
    needs = needing(wanted, name)
    keys, commits = _key_list(needs, name), needs["commit_id"].to_pylist()
    there = set(_key_list(held, name))
    if name != LEDGER:
        settled = needs["settled"].to_pylist()
        there -= {key for key, known in zip(keys, settled, strict=True) if not known}
    return keys, commits, set(keys), there


def _wanted(lake: Snapshot, ledger: Table) -> Shards:
    """The segments that count, with their commits; `settled` where the published ledger tells of just this
    doing of it."""
    columns = ["uri", *_KEYS[LEDGER], "commit_id", "n_tracks", "n_windows"]
    schema = pa.schema([TABLES[LEDGER].field(column) for column in columns])
    live = Shards.of(schema, (part.live.select(columns) for part in ledger_parts(lake.ledger)))
    wanted = Shards(schema.append(pa.field("settled", pa.bool_())))
    held = _held(ledger, LEDGER, list(ledger.scan().plan_files()))
    for part, of_table in together(live, held):
        there = set(_key_list(of_table, LEDGER))
        settled = [key in there for key in _key_list(part, LEDGER)]
        wanted.add(part.append_column("settled", pa.array(settled, pa.bool_())))
    return wanted


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
    """The table, made where it is not there, widened where the lake's has columns more."""
    from pyiceberg.exceptions import NoSuchTableError

    schema = table_schema(identifier[1])
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        written = {"write.parquet.compression-codec": "zstd", _OUTPUT: _place(lake, lake.root)}
        with (
            catalog.create_table_transaction(
                identifier,
                schema,
                location=_own_location(lake, catalog, identifier),
                properties=_ONCE | written,
            ) as change,
            change.update_spec() as spec,
        ):
            spec.add_identity("corpus").add_identity("date")
        return catalog.load_table(identifier)
    if _OUTPUT not in table.properties:
        with table.transaction() as change:
            change.set_properties(_ONCE | {_OUTPUT: _place(lake, lake.root)})
        table = catalog.load_table(identifier)
    if set(schema.names) - _column_names(table):
        with table.update_schema() as update:
            update.union_by_name(schema)
        table = catalog.load_table(identifier)
    return table


def _own_location(lake: Lake, catalog: Catalog, identifier: tuple[str, str]) -> str | None:
    """A place under the output that is one table's alone; two catalogues of one output would share what
    pyiceberg chooses. None where the catalogue has a warehouse of its own."""
    if catalog.properties.get("warehouse") != _warehouse(lake):
        return None
    return "/".join((_warehouse(lake), *identifier)) + f"-{secrets.token_hex(4)}"


def _warehouse(lake: Lake) -> str:
    return str(lake.fs.unstrip_protocol(lake.path(_WAREHOUSE)))


def _files_below(lake: Lake, table: Table) -> dict[str, str]:
    """What publishings have written at a table's place below the output, by `_place`; nothing where another
    table has written there too, as older versions of this program let them."""
    root = _place(lake, table.location())
    if not root.startswith(_place(lake, lake.path(_WAREHOUSE)) + "/"):
        return {}
    try:
        paths = lake.fs.find(str(lake.fs._strip_protocol(root)))
    except FileNotFoundError:
        return {}
    if not _OWN_PLACE.search(root) and any(
        _is_of_another(lake.fs.cat_file(path), str(table.metadata.table_uuid))
        for path in paths
        if path.endswith(".metadata.json")
    ):
        return {}
    return {_place(lake, path): path for path in paths if path.endswith((".parquet", ".avro"))}


def _is_of_another(metadata: bytes, table_uuid: str) -> bool:
    """Whether a metadata file is another table's; one of a killed publishing is half written, or empty."""
    try:
        return bool(json.loads(metadata)["table-uuid"] != table_uuid)
    except (ValueError, KeyError, TypeError):
        return not (metadata == b"" or metadata.startswith(b"{"))


def _named_files(lake: Lake, table: Table) -> set[str]:
    """Data files, manifests and their lists that any snapshot names, by `_place`."""
    paths = [
        *table.inspect.all_files()["file_path"].to_pylist(),
        *table.inspect.all_manifests()["path"].to_pylist(),
        *(snapshot.manifest_list for snapshot in table.snapshots()),
    ]
    return {_place(lake, path) for path in paths}


def _read(table: Table, task: FileScanTask, columns: list[str]) -> pa.Table:
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan

    scan = ArrowScan(table.metadata, table.io, table.schema().select(*columns), AlwaysTrue())
    return scan.to_table([task])


def _data_files(table: Table, rows: pa.Table, mark: uuid.UUID) -> Iterator[DataFile]:
    """Writes rows as data files of the table, one or more a partition, with `mark` in their names.

    pyiceberg offers this step only inside append() and overwrite(), and those would make a snapshot
    of the deletion and another of the addition.
    """
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    yield from _dataframe_to_data_files(table.metadata, rows, table.io, mark, _NUMBERS)


def _batched(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Small tables together, so that many commits become few files; bounded by memory."""
    held = Joined()
    for table in tables:
        held.add(table)
        if held.nbytes >= _FLUSH_BYTES:
            yield pa.concat_tables(held.tables).combine_chunks()
            held = Joined()
            # Of a hundred thousand small tables the pool would keep pages that are half empty.
            pa.default_memory_pool().release_unused()
    if held.tables:
        yield pa.concat_tables(held.tables).combine_chunks()


def _key_list(rows: pa.Table, name: str) -> list[Key]:
    return list(zip(*(rows[key].to_pylist() for key in _KEYS[name]), strict=True))
