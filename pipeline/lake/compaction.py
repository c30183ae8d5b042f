"""Many small commits -> few large ones, by the same commit protocol.

A group of commits of one partition is committed anew as one; then the old data files go, then the
old ledger files. Rows keep their `finished_at`, and a later commit id breaks the tie, so from the
moment the new ledger file stands the old rows are stale: killed at any step, the next settling
finishes the work. A reader of the ledger sees each row once all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from emolake.pipeline.lake.commit import write_commit
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, DataFile, Lake, new_commit_id
from emolake.pipeline.lake.recovery import remove_orphans, remove_stale_rows
from emolake.pipeline.lake.schema import TABLES, sort_keys


@dataclass(frozen=True)
class Compacted:
    """Files of all tables before and after."""

    files_before: int
    files_after: int


def compact(lake: Lake, fence: Callable[[], None], target_bytes: int) -> Compacted:
    """Merges the commits of each partition into files of about `target_bytes` (of the largest table).

    Needs the lease, since it settles what a crash left first.
    """
    before = sum(len(lake.files(name)) for name in TABLES)
    remove_orphans(lake)
    remove_stale_rows(lake, fence)
    for group in list(_groups(lake, target_bytes)):
        _merge(lake, group, fence)
    return Compacted(before, sum(len(lake.files(name)) for name in TABLES))


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
            size = max(lake.fs.size(file.path) or 0 for file in commit.values())
            if group and held + size > target_bytes:
                yield from [group] if len(group) > 1 else []
                group, held = [], 0
            group.append(commit)
            held += size
        if len(group) > 1:
            yield group


def _merge(lake: Lake, group: list[Commit], fence: Callable[[], None]) -> None:
    commit_id = new_commit_id()
    tables: dict[str, pa.Table] = {}
    for name in (*DATA_TABLES, LEDGER):
        parts = [lake.read_table(commit[name]) for commit in group if name in commit]
        if parts:
            order = [(key, "ascending") for key in sort_keys(TABLES[name])]
            tables[name] = pa.concat_tables(parts).sort_by(order)
    at = tables[LEDGER].schema.get_field_index("commit_id")
    renamed = pa.array([commit_id] * tables[LEDGER].num_rows, pa.string())
    tables[LEDGER] = tables[LEDGER].set_column(at, tables[LEDGER].schema.field(at), renamed)
    where = group[0][LEDGER]
    write_commit(lake, tables, where.corpus, where.date, commit_id, fence)
    fence()
    for commit in group:
        for name in (*DATA_TABLES, LEDGER):
            if name in commit:
                lake.remove(commit[name].path)
