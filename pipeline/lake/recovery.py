"""Mending a lake: what dead attempts left goes, rows without their data are done again, stale rows are
written out of their files."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.lake.commit import write_commit
from emolake.pipeline.lake.forgetting import Forgotten, blacken_runs
from emolake.pipeline.lake.labels import erase_labels
from emolake.pipeline.lake.layout import DATA_TABLES, LABELS, LEDGER, DataFile, Lake
from emolake.pipeline.lake.lease import Fence, Lease
from emolake.pipeline.lake.ledger import (
    Segments,
    gather,
    ledger_parts,
    ledger_shards,
    needing,
    of_uris,
    without_segments,
)
from emolake.pipeline.lake.order import lease_of, new_commit_id
from emolake.pipeline.lake.schema import TABLES, VIDEOS
from emolake.pipeline.storage.files import exists
from emolake.pipeline.storage.shards import Shards

_TRIES = 5

T = TypeVar("T")


def recover(
    lake: Lake, fence: Fence, *, own: bool = False, whole: bool = False, forgets: bool = True
) -> Shards:
    """At a run's start it finishes what a killed one left half done, at its end what it replaced itself.
    Returns the ledger as it is then (`ledger_shards`, `whole` or not).

    forgets: rows of videos that are to be forgotten go first, those that a slow writer brought back too.
    own: what stands half done under this very lease goes too; only where none of its writes is under way.
    """
    return _again(fence, lambda: _settled(lake, fence, own=own, whole=whole, forgets=forgets))


def _again(fence: Fence, work: Callable[[], T]) -> T:
    """`work`, begun anew where files go under its feet while the output is ours: whoever had it before has
    woken up and removes what it had replaced. LeaseLost where it is ours no more."""
    for left in reversed(range(_TRIES)):
        try:
            with fence.held():
                return work()
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError("unreachable")


def _settled(lake: Lake, fence: Fence, *, own: bool, whole: bool, forgets: bool) -> Shards:
    forgotten = Forgotten.of(lake) if forgets else None
    data, ledger = _data_files(lake), ledger_shards(lake, whole=whole)
    if forgotten:
        erase_labels(lake, forgotten, fence)
    if forgotten and (back := _segments_of(ledger, forgotten)):
        blacken_runs(lake, _uris_among(ledger, forgotten), fence)
        _rewrite(lake, ledger, back, fence)
        data, ledger = _data_files(lake), ledger_shards(lake, whole=whole)
    found = _look(lake, ledger, data)
    _remove_orphans(lake, data, found.committed, fence.number if own else fence.number - 1)
    if found.bereft:
        _rewrite(lake, ledger, found.bereft, fence)
        ledger = ledger_shards(lake, whole=whole)
        found = _look(lake, ledger, data)
    if found.stale:
        _rewrite(lake, ledger, found.stale, fence)
        ledger = ledger_shards(lake, whole=whole)
    return ledger


def erase(lake: Lake, fence: Fence, gone: Container[str]) -> dict[str, int]:
    """Takes every row of some videos out, whether it counts or not. gone: their uris. Returns how many rows
    went of each table. JobFailed where the store keeps some."""
    ledger, segments, count = _again(fence, lambda: _counted(lake, gone))
    with fence.held():
        count[LABELS] = erase_labels(lake, gone, fence)
        if segments:
            _rewrite(lake, ledger, segments, fence)
            left = {file.commit_id for table in TABLES for file in lake.files(table)}
            if left & segments.keys() or _segments_of(ledger_shards(lake), gone):
                fence()
                raise JobFailed(f"{lake.uri} still holds some of these rows; run it again")
        return count


def _counted(lake: Lake, gone: Container[str]) -> tuple[Shards, Segments, dict[str, int]]:
    """The ledger, the segments of some videos by commit, and how many rows of each table are theirs."""
    count = dict.fromkeys((*DATA_TABLES, LEDGER), 0)
    ledger = ledger_shards(lake)
    segments = _segments_of(ledger, gone)
    for file in _data_files(lake):
        if file.commit_id in segments:
            rows = lake.read_table(file, ["video_id", "segment"]).to_pylist()
            there = segments[file.commit_id]
            count[file.table] += sum((r["video_id"], r["segment"]) in there for r in rows)
    count[LEDGER] = sum(map(len, segments.values()))
    return ledger, segments, count


def _data_files(lake: Lake) -> list[DataFile]:
    return [file for table in DATA_TABLES for file in lake.files(table)]


def _segments_of(ledger: Shards, gone: Container[str]) -> Segments:
    found: Segments = {}
    for part in ledger.parts():
        gather(found, part.filter(of_uris(part, gone)))
    return found


def _uris_among(ledger: Shards, uris: Container[str]) -> set[str]:
    told = (part["uri"].unique().to_pylist() for part in ledger.parts())
    return {uri for of_part in told for uri in of_part if uri in uris}


def tidy(lake: Lake, run_id: str) -> None:
    """Removes what a failed run left half written, unless another run has the output: it does then.

    The new lease comes first. It fences off any write task that still goes on somewhere.
    """
    with suppress(UserError, OSError):
        lease = Lease.acquire(lake, run_id, patient=False)
        try:
            data = _data_files(lake)
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
    where: dict[str, DataFile] = {}
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
            for commit in commits:
                where = where or {file.commit_id: file for file in lake.files(LEDGER)}
                if commit in where and not exists(
                    lake.fs, _beside(lake, where[commit], table).path
                ):
                    lost = pc.equal(needs["commit_id"], commit)
                    gather(found.bereft, needs.filter(lost))
    return found


def _beside(lake: Lake, file: DataFile, table: str) -> DataFile:
    """The file of another table of the same commit, be it there or not."""
    path = lake.data_path(table, file.corpus, file.date, file.commit_id)
    return replace(file, path=path)


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
        place = _beside(lake, file, LEDGER)
        if (
            lake.create_table(place.path, VIDEOS.empty_table())
            or not lake.read_table(place).num_rows
        ):
            lake.remove(f.path for f in data if f.commit_id == commit_id)
    lake.remove(path for path, commit in lake.partial_files() if lease_of(commit) <= through)
    lake.remove(lake.partial_records())
    lake.abort_uploads(lambda commit_id: lease_of(commit_id) <= through)


def _rewrite(lake: Lake, ledger: Shards, gone: Segments, fence: Fence) -> None:
    """Makes a plain glob show none of the segments `gone`.

    Each commit's other rows that are not stale are committed anew (the same protocol), then the old files go.
    A crash after the new commit leaves two ledger rows for a segment, of which the newer counts, and the
    next call here finishes the work. Where a row goes that counts, and none comes for it, the ledger file
    goes first: what it names has to be there as long as it stands. Else it goes last.
    """
    files = {(f.table, f.commit_id): f for t in TABLES for f in lake.files(t)}
    stale: Segments = {}
    for part in ledger_parts(ledger):
        gather(stale, part.stale.filter(pc.is_in(part.stale["commit_id"], pa.array(list(gone)))))
    for commit_id, segments in sorted(gone.items()):
        # A crash may have left copies of stale rows that are newer than these, whose data is gone by now.
        _recommit(lake, commit_id, segments | stale.get(commit_id, set()), files, fence)
    fence()
    for counted in (True, False):
        commits = [c for c in gone if bool(gone[c] - stale.get(c, set())) is counted]
        for tables in ((LEDGER,), DATA_TABLES) if counted else (DATA_TABLES, (LEDGER,)):
            lake.remove(files[t, c].path for c in commits for t in tables if (t, c) in files)


def _recommit(
    lake: Lake,
    old_id: str,
    gone: set[tuple[str, int]],
    files: dict[tuple[str, str], DataFile],
    fence: Fence,
) -> None:
    """Commits anew what of a commit stays, if anything does: of `gone` nothing, and nothing of what should
    have data and has none."""
    if (LEDGER, old_id) not in files:
        return
    old = files[LEDGER, old_id]
    try:
        tables = {LEDGER: without_segments(lake.read_table(old), gone)}
    except FileNotFoundError:
        # Whoever had the output before has woken up and ended what it was at: it had committed the rest anew.
        return
    if not tables[LEDGER].num_rows:
        return
    lost: Segments = {}
    for name in DATA_TABLES:
        needs = needing(tables[LEDGER], name)
        if needs.num_rows or (name, old_id) in files:
            try:
                tables[name] = without_segments(lake.read_table(_beside(lake, old, name)), gone)
            except FileNotFoundError:
                gather(lost, needs)
    tables = {
        name: without_segments(table, lost.get(old_id, set())) for name, table in tables.items()
    }
    if not tables[LEDGER].num_rows:
        return
    commit_id = new_commit_id(fence.number, [old_id])
    write_commit(lake, tables, old.corpus, old.date, commit_id, fence)
