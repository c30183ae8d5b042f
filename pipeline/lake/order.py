"""Which of two rows is newer. No clock answers that: leases are numbered, each is taken once, and every row
says under which it was written.

Rows that are copied by settling or compaction keep the lease they were written under. A commit's id
orders copies behind what they replace: it holds the lease under which it was made, then a rank within it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

_COMMIT_ID = re.compile(r"L(\d{9})-(\d{3})-")


def new_commit_id(lease: int, replaces: Iterable[str] = ()) -> str:
    """Unlike any other, and behind all that it replaces, none of which is of a later lease.

    The time in it tells people when it was made, and chooses among the commits of one lease that did
    the same segment twice, of which either is right.
    """
    ranks = [rank for made_under, rank in map(_place, replaces) if made_under == lease]
    rank = max(ranks, default=0) + 1 if replaces else 0
    return f"L{lease:09d}-{rank:03d}-{time.time_ns():016x}-{secrets.token_hex(4)}"


def lease_of(commit_id: str) -> int:
    """The lease under which a commit was made; 0 for those older than this rule."""
    return _place(commit_id)[0]


def is_rewrite(commit_id: str) -> bool:
    """Whether a commit holds rows of others, which go once it stands."""
    return _place(commit_id)[1] > 0


def in_order(rows: pa.Table) -> pa.Table:
    """Ledger rows, the newest of each segment last. By lease; among the tries of one lease by success, and
    then by commit. Rows older than leases, all of which come first, by their time."""
    lease = pc.fill_null(rows["lease"], 0)
    untold = pc.if_else(pc.equal(lease, 0), rows["finished_at"].cast(pa.int64()), 0)
    keys = {"_lease": lease, "_time": untold, "_well": pc.not_equal(rows["state"], "failed")}
    for name, column in keys.items():
        rows = rows.append_column(name, column)
    order = [(name, "ascending") for name in (*keys, "commit_id")]
    return rows.sort_by(order).drop_columns(list(keys))


def _place(commit_id: str) -> tuple[int, int]:
    match = _COMMIT_ID.match(commit_id)
    return (int(match[1]), int(match[2])) if match else (0, 0)
