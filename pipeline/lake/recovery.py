"""Mending a lake: orphans of dead attempts go, stale rows are written out of their files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa

from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.commit import write_commit
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, DataFile, Lake, new_commit_id
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.lake.ledger import ledger_parts, ledger_shards


def recover(lake: Lake, fence: Callable[[], None]) -> None:
    """At a run's start it finishes what a killed one left half done, at its end what it replaced itself."""
    remove_orphans(lake)
    remove_stale_rows(lake, fence)


def tidy(lake: Lake, run_id: str) -> None:
    """Removes what a failed run left half written, unless another run has the output: it does then.

    The new lease comes first. It fences off any write task that still goes on somewhere, so that no
    commit ends whose data is being removed.
    """
    with suppress(UserError, OSError):
        lease = Lease.acquire(lake, run_id)
        try:
            remove_orphans(lake)
        finally:
            lease.release()


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
    stale: dict[str, set[tuple[str, int]]] = {}
    for ledger in ledger_parts(ledger_shards(lake)):
        for row in ledger.stale.select(["commit_id", "video_id", "segment"]).to_pylist():
            stale.setdefault(row["commit_id"], set()).add((row["video_id"], row["segment"]))
    if not stale:
        return 0
    files = {(f.table, f.commit_id): f for t in (*DATA_TABLES, LEDGER) for f in lake.files(t)}
    for commit_id, gone in sorted(stale.items()):
        _recommit(lake, commit_id, gone, files, fence)
        fence()
        for table in (*DATA_TABLES, LEDGER):
            if (table, commit_id) in files:
                lake.remove(files[(table, commit_id)].path)
    return sum(map(len, stale.values()))


def _recommit(
    lake: Lake,
    old_id: str,
    gone: set[tuple[str, int]],
    files: dict[tuple[str, str], DataFile],
    fence: Callable[[], None],
) -> None:
    """Commits anew what of a commit stays, if anything does. gone: (video_id, segment)."""
    tables = {
        name: _without(lake.read_table(files[(name, old_id)]), gone)
        for name in (*DATA_TABLES, LEDGER)
        if (name, old_id) in files
    }
    ledger = tables[LEDGER]
    if not ledger.num_rows:
        return
    commit_id = new_commit_id()
    at = ledger.schema.get_field_index("commit_id")
    renamed = pa.array([commit_id] * ledger.num_rows, pa.string())
    tables[LEDGER] = ledger.set_column(at, ledger.schema.field(at), renamed)
    old = files[(LEDGER, old_id)]
    write_commit(lake, tables, old.corpus, old.date, commit_id, fence)


def _without(table: pa.Table, gone: set[tuple[str, int]]) -> pa.Table:
    pairs = zip(*(table[n].to_pylist() for n in ("video_id", "segment")), strict=True)
    return table.filter(pa.array([pair not in gone for pair in pairs], pa.bool_()))
