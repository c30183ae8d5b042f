"""Many small commits -> few large ones, by the same commit protocol.

Commits of one partition are committed anew as one; then the old data files go, then the old ledger
files. Rows keep the lease they were written under and the new commit's id orders behind those it replaces,
so from the moment the new ledger file stands the old rows are stale: killed at any step, the next settling
finishes the work. A reader of the ledger sees each row once all the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.lake.commit import write_commit
from emolake.pipeline.lake.labels import merge
from emolake.pipeline.lake.layout import DATA_TABLES, LABELS, LEDGER, DataFile, Lake
from emolake.pipeline.lake.lease import Fence
from emolake.pipeline.lake.ledger import ledger_parts
from emolake.pipeline.lake.order import new_commit_id
from emolake.pipeline.lake.recovery import recover
from emolake.pipeline.lake.schema import TABLES, VIDEOS, sort_keys
from emolake.pipeline.storage.shards import Joined, Shards

_MERGED_BYTES = 1 << 30
"""Of rows in memory: what is merged at once, however well it packs. Arrow's strings end at 2 GiB a column."""


@dataclass(frozen=True)
class Compacted:
    """Files of all tables before and after."""

    files_before: int
    files_after: int


def compact(lake: Lake, fence: Fence, target_bytes: int) -> Compacted:
    """Merges the commits of each partition into files of about `target_bytes` (of the largest table).

    Needs the lease, since it settles what a crash left first.
    """
    before = sum(len(lake.files(name)) for name in (*TABLES, LABELS))
    ledger = recover(lake, fence, whole=True)
    with fence.held():
        groups = list(_groups(lake, target_bytes))
        for group, rows in _with_rows(groups, ledger):
            _merge(lake, group, rows, fence)
        merge(lake, fence)
    return Compacted(before, sum(len(lake.files(name)) for name in (*TABLES, LABELS)))


Commit = dict[str, DataFile]
"""One commit's files by table."""


def _groups(lake: Lake, target_bytes: int) -> Iterator[list[Commit]]:
    """Commits that belong together: one partition, in order, up to the size that is wanted."""
    commits: dict[tuple[str, str], dict[str, Commit]] = {}
    for name in (*DATA_TABLES, LEDGER):
        for file in lake.files(name):
            partition = commits.setdefault((file.corpus, file.date), {})
            partition.setdefault(file.commit_id, {})[name] = file
    for _, partition in sorted(commits.items()):
        group: list[Commit] = []
        held = 0
        for _, commit in sorted(partition.items()):
            if LEDGER not in commit:
                continue  # its writer may be at work, or dead: recovery's business
            size = max(file.size for file in commit.values())
            if group and held + size > target_bytes:
                yield from [group] if len(group) > 1 else []
                group, held = [], 0
            group.append(commit)
            held += size
        if len(group) > 1:
            yield group


def _with_rows(
    groups: list[list[Commit]], ledger: Shards
) -> Iterator[tuple[list[Commit], pa.Table]]:
    """Groups with their rows of the ledger and how these stand; the ledger is dealt out once, however many
    groups there are."""
    of_commit = {
        commit[LEDGER].commit_id: str(k) for k, group in enumerate(groups) for commit in group
    }
    schema = pa.schema([*VIDEOS, ("standing", pa.string()), ("group", pa.string())])
    dealt = Shards(schema, "group")
    for part in ledger_parts(ledger):
        group = pa.array(map(of_commit.get, part.rows["commit_id"].to_pylist()), pa.string())
        dealt.add(part.rows.append_column("group", group).filter(group.is_valid()))
    for rows in dealt.parts():
        rows = rows.sort_by("group")
        at = 0
        for told in pc.value_counts(rows["group"]).to_pylist():  # in order of appearance
            yield groups[int(told["values"])], rows.slice(at, told["counts"])
            at += told["counts"]


def _merge(lake: Lake, group: list[Commit], rows: pa.Table, fence: Fence) -> None:
    """One commit of many, or a few where their rows are too many to hold. rows: see `_with_rows`."""
    # One without rows is the place of a dead writer's ledger file, which stays taken. One with rows that do
    # not count, or not yet, stays by itself: within a commit a segment is told by video and number alone.
    there = set(rows["commit_id"].to_pylist())
    there -= set(rows.filter(pc.not_equal(rows["standing"], "live"))["commit_id"].to_pylist())
    rows = rows.drop_columns(["standing", "group"])
    group = [commit for commit in group if commit[LEDGER].commit_id in there]
    read = lake.read_tables(
        commit[name] for commit in group for name in DATA_TABLES if name in commit
    )
    taken: list[Commit] = []
    tables = {name: Joined() for name in DATA_TABLES}
    held = 0
    for commit in group:
        own = [next(read) for name in DATA_TABLES if name in commit]
        size = sum(table.nbytes for _, table in own)
        if held + size > _MERGED_BYTES:
            _replace(lake, taken, tables, rows, fence)
            taken, tables, held = [], {name: Joined() for name in DATA_TABLES}, 0
        taken.append(commit)
        for file, table in own:
            tables[file.table].add(table)
        held += size
    _replace(lake, taken, tables, rows, fence)


def _replace(
    lake: Lake,
    commits: list[Commit],
    tables: dict[str, Joined],
    ledger: pa.Table,
    fence: Fence,
) -> None:
    """ledger: the rows of these commits, and of others."""
    if len(commits) < 2:
        return
    ids = [commit[LEDGER].commit_id for commit in commits]
    own = ledger.filter(pc.is_in(ledger["commit_id"], pa.array(ids)))
    parts = {name: of_one.tables for name, of_one in tables.items()} | {LEDGER: [own]}
    merged = {}
    for name, of_one in parts.items():
        order = [(key, "ascending") for key in sort_keys(TABLES[name])]
        merged[name] = pa.concat_tables([TABLES[name].empty_table(), *of_one]).sort_by(order)
    where = commits[0][LEDGER]
    commit_id = new_commit_id(fence.number, ids)
    write_commit(lake, merged, where.corpus, where.date, commit_id, fence)
    fence()
    for names in (DATA_TABLES, (LEDGER,)):
        lake.remove(commit[name].path for commit in commits for name in names if name in commit)
