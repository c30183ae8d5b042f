"""Mending a lake: what dead attempts left goes, rows without their data are done again, stale rows are
written out of their files."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.lake.commit import write_commit
from emolake.pipeline.lake.forgetting import Forgotten
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, DataFile, Lake
from emolake.pipeline.lake.lease import Fence, Lease
from emolake.pipeline.lake.ledger import (
    Segments,
    gather,
    ledger_parts,
    ledger_shards,
    needing,
    without_segments,
)
from emolake.pipeline.lake.order import lease_of, new_commit_id
from emolake.pipeline.lake.schema import VIDEOS
from emolake.pipeline.storage.shards import Shards


def recover(
    lake: Lake, fence: Fence, *, own: bool = False, whole: bool = False, forgets: bool = True
) -> Shards:
    """At a run's start it finishes what a killed one left half done, at its end what it replaced itself.
    Returns the ledger as it is then (`ledger_shards`, `whole` or not).

    forgets: rows of videos that are to be forgotten go first, those that a slow writer brought back too.
    own: what stands half done under this very lease goes too; only where none of its writes is under way.
    """
    with fence.held():
        data = [file for table in DATA_TABLES for file in lake.files(table)]
        ledger = ledger_shards(lake, whole=whole)
        forgotten = Forgotten.of(lake) if forgets else None
        if forgotten and (back := _segments_of(ledger, forgotten)):
            _rewrite(lake, back, fence)
            ledger = ledger_shards(lake, whole=whole)
        found = _look(lake, ledger, data)
        _remove_orphans(lake, data, found.committed, fence.number if own else fence.number - 1)
        if found.bereft:
            _rewrite(lake, found.bereft, fence)
            ledger = ledger_shards(lake, whole=whole)
            found = _look(lake, ledger, data)
        if found.stale:
            _rewrite(lake, found.stale, fence)
            ledger = ledger_shards(lake, whole=whole)
        return ledger


def erase(lake: Lake, fence: Fence, gone: Container[str]) -> dict[str, int]:
    """Takes every row of some videos out, whether it counts or not. gone: their uris. Returns how many rows
    went of each table. JobFailed where the store keeps some."""
    with fence.held():
        count = dict.fromkeys((*DATA_TABLES, LEDGER), 0)
        segments = _segments_of(ledger_shards(lake), gone)
        for file in (f for table in DATA_TABLES for f in lake.files(table)):
            if file.commit_id in segments:
                rows = lake.read_table(file, ["video_id", "segment"]).to_pylist()
                there = segments[file.commit_id]
                count[file.table] += sum((r["video_id"], r["segment"]) in there for r in rows)
        count[LEDGER] = sum(map(len, segments.values()))
        if segments:
            _rewrite(lake, segments, fence)
            if _segments_of(ledger_shards(lake), gone):
                raise JobFailed(f"{lake.uri}: the store did not remove all rows; run it again")
        return count


def _segments_of(ledger: Shards, gone: Container[str]) -> Segments:
    found: Segments = {}
    for part in ledger.parts():
        uris = [uri for uri in part["uri"].unique().to_pylist() if uri in gone]
        if uris:
            gather(found, part.filter(pc.is_in(part["uri"], pa.array(uris))))
    return found


def tidy(lake: Lake, run_id: str) -> None:
    """Removes what a failed run left half written, unless another run has the output: it does then.

    The new lease comes first. It fences off any write task that still goes on somewhere.
    """
    with suppress(UserError, OSError):
        lease = Lease.acquire(lake, run_id, patient=False)
        try:
            data = [file for table in DATA_TABLES for file in lake.files(table)]
            committed = {file.commit_id for file in lake.files(LEDGER)}
            _remove_orphans(lake, data, committed, lease.number - 1)
        finally:
            lease.release()


@dataclass(frozen=True)
class _Found:
    """committed: commits with rows in the ledger; stale: rows that were replaced; bereft: rows whose data
    files are gone."""

    committed: set[str] = field(default_factory=set)
    stale: Segments = field(default_factory=dict)
    bereft: Segments = field(default_factory=dict)


def _look(lake: Lake, ledger: Shards, data: Iterable[DataFile]) -> _Found:
    found = _Found()
    held = {
        table: {file.commit_id for file in data if file.table == table} for table in DATA_TABLES
    }
    for part in ledger_parts(ledger):
        rows = part.rows
        found.committed.update(rows["commit_id"].unique().to_pylist())
        stale = pc.equal(rows["standing"], "stale")
        gather(found.stale, rows.filter(stale))
        live = rows.filter(pc.invert(stale))
        for table in DATA_TABLES:
            needs = needing(live, table)
            commits = set(needs["commit_id"].unique().to_pylist()) - held[table]
            # A listing may lag; the files themselves do not.
            if lost := [commit for commit in commits if not _stands(lake, table, commit)]:
                gather(found.bereft, needs.filter(pc.is_in(needs["commit_id"], pa.array(lost))))
    return found


def _stands(lake: Lake, table: str, commit_id: str) -> bool:
    return any(
        file.commit_id == commit_id
        and lake.fs.exists(lake.data_path(table, file.corpus, file.date, commit_id))
        for file in lake.files(LEDGER)
    )


def _remove_orphans(lake: Lake, data: list[DataFile], committed: set[str], through: int) -> None:
    """Deletes data files whose commit has no row in the ledger, and what a killed write left half done, of
    the leases up to `through`.

    A writer that slept may be about to write its ledger file. So its place is taken first, by an empty one:
    a ledger file is only ever created, so of the two one fails and knows it. The empty one stays.
    """
    dead = {
        file.commit_id: file
        for file in data
        if file.commit_id not in committed and lease_of(file.commit_id) <= through
    }
    for commit_id, file in dead.items():
        place = replace(
            file, table=LEDGER, path=lake.data_path(LEDGER, file.corpus, file.date, commit_id)
        )
        if (
            lake.create_table(place.path, VIDEOS.empty_table())
            or not lake.read_table(place).num_rows
        ):
            lake.remove(f.path for f in data if f.commit_id == commit_id)
    lake.remove(path for path, commit in lake.partial_files() if lease_of(commit) <= through)


def _rewrite(lake: Lake, gone: Mapping[str, set[tuple[str, int]]], fence: Fence) -> None:
    """Makes a plain glob show none of the segments `gone`.

    Each commit's other rows are committed anew (the same protocol), then the old data files go, then the
    old ledger file. A crash after the new commit leaves two ledger rows for a segment, of which the newer
    counts, and the next call here finishes the work.
    """
    files = {(f.table, f.commit_id): f for t in (*DATA_TABLES, LEDGER) for f in lake.files(t)}
    for commit_id, segments in sorted(gone.items()):
        _recommit(lake, commit_id, segments, files, fence)
    fence()
    for tables in (DATA_TABLES, (LEDGER,)):
        lake.remove(
            files[(table, commit_id)].path
            for commit_id in gone
            for table in tables
            if (table, commit_id) in files
        )


def _recommit(
    lake: Lake,
    old_id: str,
    gone: set[tuple[str, int]],
    files: dict[tuple[str, str], DataFile],
    fence: Fence,
) -> None:
    """Commits anew what of a commit stays, if anything does. gone: (video_id, segment)."""
    tables = {
        name: without_segments(lake.read_table(files[(name, old_id)]), gone)
        for name in (*DATA_TABLES, LEDGER)
        if (name, old_id) in files
    }
    if LEDGER not in tables or not tables[LEDGER].num_rows:
        return
    old = files[(LEDGER, old_id)]
    commit_id = new_commit_id(fence.number, [old_id])
    write_commit(lake, tables, old.corpus, old.date, commit_id, fence)
