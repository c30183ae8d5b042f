"""Mending a lake: orphans of dead attempts go, stale rows are written out of their files."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lake.commit import write_commit
from pipeline.lake.layout import DATA_TABLES, LEDGER, DataFile, Lake, new_commit_id
from pipeline.lake.ledger import read_ledger


def remove_orphans(lake: Lake) -> int:
    """Deletes data files whose commit has no ledger file, and what a killed write left half done.
    Call it only while no write is in flight."""
    data = [file for table in DATA_TABLES for file in lake.files(table)]
    # The ledger is listed after the data, so a commit that ends in between is not taken for dead.
    committed = {file.commit_id for file in lake.files(LEDGER)}
    orphans = [file for file in data if file.commit_id not in committed]
    for path in [*(file.path for file in orphans), *lake.partial_files()]:
        lake.remove(path)
    return len(orphans)


def remove_stale_rows(lake: Lake, fence: Callable[[], None]) -> int:
    """Makes a plain glob show no replaced row; returns how many ledger rows went.

    Per commit with stale rows: its other rows are committed anew (the same protocol), then the old
    data files go, then the old ledger file. A crash after the new commit leaves two ledger rows for
    a segment, of which the newer counts, and the next call here finishes the work.
    """
    ledger = read_ledger(lake)
    stale = ledger.stale
    if not stale.num_rows:
        return 0
    files = {(f.table, f.commit_id): f for t in (*DATA_TABLES, LEDGER) for f in lake.files(t)}
    for commit_id in pc.unique(stale["commit_id"]).to_pylist():
        old = files[(LEDGER, commit_id)]
        kept = ledger.kept.filter(pc.equal(ledger.kept["commit_id"], commit_id))
        if kept.num_rows:
            _recommit(lake, old, kept, files, fence)
        fence()
        for table in (*DATA_TABLES, LEDGER):
            if (table, commit_id) in files:
                lake.remove(files[(table, commit_id)].path)
    return int(stale.num_rows)


def _recommit(
    lake: Lake,
    old: DataFile,
    kept: pa.Table,
    files: dict[tuple[str, str], DataFile],
    fence: Callable[[], None],
) -> None:
    commit_id = new_commit_id()
    keys = kept.select(["video_id", "segment"])
    tables: dict[str, pa.Table] = {}
    for name in DATA_TABLES:
        file = files.get((name, old.commit_id))
        if file is not None:
            tables[name] = _rows_of(lake.read_table(file), keys)
    ledger = lake.read_table(old)
    ledger = _rows_of(ledger, keys)
    at = ledger.schema.get_field_index("commit_id")
    renamed = pa.array([commit_id] * ledger.num_rows, pa.string())
    tables[LEDGER] = ledger.set_column(at, ledger.schema.field(at), renamed)
    write_commit(lake, tables, old.corpus, old.date, commit_id, fence)


def _rows_of(table: pa.Table, keys: pa.Table) -> pa.Table:
    """The rows whose (video_id, segment) is among `keys`, in their order."""
    wanted = set(zip(*(keys[n].to_pylist() for n in ("video_id", "segment")), strict=True))
    pairs = zip(*(table[n].to_pylist() for n in ("video_id", "segment")), strict=True)
    return table.filter(pa.array([pair in wanted for pair in pairs], pa.bool_()))
