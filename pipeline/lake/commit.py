"""The write task's work: rows of annotated segments -> one commit per corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.lease import Fence, LeaseLost
from emolake.pipeline.lake.ledger import needing
from emolake.pipeline.lake.order import new_commit_id
from emolake.pipeline.lake.schema import (
    ANNOTATIONS,
    SCHEMA_VERSION,
    TABLES,
    TRACKS,
    VIDEOS,
    sort_keys,
)


@dataclass(frozen=True)
class RunStamp:
    """What a run writes into every row. date: the UTC day on which it started."""

    run_id: str
    date: str
    config_hash: str


def commit_segments(lake: Lake, rows: list[dict[str, Any]], run: RunStamp, fence: Fence) -> None:
    """Commits segments (rows of schema.ANNOTATED_ROW), ledger last. LeaseLost where the run has lost the
    output meanwhile."""
    by_corpus: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_corpus.setdefault(row["corpus"], []).append(row)
    for corpus, members in sorted(by_corpus.items()):
        tables = {
            "annotations": _table(_annotations(members, run), ANNOTATIONS),
            "tracks": _table(_tracks(members, run), TRACKS),
            LEDGER: _table(_ledger(members, run, fence.number), VIDEOS),
        }
        write_commit(lake, tables, corpus, run.date, new_commit_id(fence.number), fence)


def write_commit(
    lake: Lake,
    tables: dict[str, pa.Table],
    corpus: str,
    date: str,
    commit_id: str,
    fence: Fence,
) -> None:
    """The commit protocol: data files in any order, then the fence, then the ledger file, which is created
    and never written over. tables: by name; the ledger's rows get this commit's id.

    Every table that the ledger's rows need (`needing`) has a file, be it an empty one, and there is always
    one: by it a recovery that takes the output over finds what this writer was about to do, and takes the
    ledger file's place first. A writer that fails before the ledger file, or whose place is taken, takes
    its data files away again: whoever owns the output by then may have ended, and nobody else would. Where
    it is unknown whether the ledger file came to be they stay, for recovery.
    """
    ledger = tables[LEDGER]
    have = {name: tables.get(name, TABLES[name].empty_table()) for name in DATA_TABLES}
    needed = [name for name in DATA_TABLES if needing(ledger, name).num_rows or have[name].num_rows]
    data = {name: have[name] for name in needed or DATA_TABLES[:1]}
    at = ledger.schema.get_field_index("commit_id")
    named = pa.array([commit_id] * ledger.num_rows, pa.string())
    ledger = ledger.set_column(at, ledger.schema.field(at), named)
    paths = {name: lake.data_path(name, corpus, date, commit_id) for name in (*data, LEDGER)}
    begun = False
    try:
        for name, table in data.items():
            lake.write_table(paths[name], table)
        fence()
        begun = True
        if not lake.create_table(paths[LEDGER], ledger):
            begun = False
            raise LeaseLost(
                f"lease {fence.number} on {lake.uri} was lost: its work was cleared away"
            )
    except Exception:
        if not begun:
            lake.remove(paths[name] for name in data)
        raise


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    keys = sort_keys(schema)
    rows.sort(key=lambda row: tuple(row[k] for k in keys))
    return pa.Table.from_pylist(rows, schema)


def _annotations(rows: list[dict[str, Any]], run: RunStamp) -> list[dict[str, Any]]:
    out = []
    for row in rows:
        person = {track["track_id"]: track["person_id"] for track in row["tracks"]}
        out += [
            _identity(row, run)
            | {"config_hash": run.config_hash, "person_id": person.get(annotation["track_id"])}
            | annotation
            for annotation in row["annotations"]
        ]
    return out


def _tracks(rows: list[dict[str, Any]], run: RunStamp) -> list[dict[str, Any]]:
    out = []
    for row in rows:
        windows: dict[int, list[dict[str, Any]]] = {}
        for annotation in first_model(row["annotations"]):
            windows.setdefault(annotation["track_id"], []).append(annotation)
        for track in row["tracks"]:
            scores = time_weighted_scores(windows.get(track["track_id"], []))
            if scores:
                emotion = max(scores, key=lambda label: scores[label])
                told = {"dominant_emotion": emotion, "emotion_scores": list(scores.items())}
                out.append(_identity(row, run) | track | told)
    return out


def first_model(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One annotation a window: that of the model named first, which speaks where one has to. Rows of
    several models stand in the order in which the models were named, in memory as in files."""
    one: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in annotations:
        key = (row.get("video_id"), row.get("segment"), row["track_id"], row["window"])
        one.setdefault(key, row)
    return list(one.values())


SHORTEST_S = 1e-3


def seconds_of(window: Mapping[str, Any]) -> float:
    """Length of a window. One of a single frame has hardly any, and must still count."""
    return max(float(window["end_s"] - window["start_s"]), SHORTEST_S)


def time_weighted_scores(annotations: list[dict[str, Any]]) -> dict[str, float]:
    """Mean score of each label over windows, each weighted by its length."""
    total: dict[str, float] = {}
    weight = 0.0
    for annotation in annotations:
        length = seconds_of(annotation)
        weight += length
        for label, score in annotation["scores"]:
            total[label] = total.get(label, 0.0) + length * score
    return {label: value / weight for label, value in total.items()}


def _ledger(rows: list[dict[str, Any]], run: RunStamp, lease: int) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    copied = ("size", "n_segments", "reason", "detail", "duration_s", "fps", "width", "height")
    return [
        _identity(row, run)
        | {name: row[name] for name in copied}
        | {
            "codec": row["codec"],
            "state": segment_state(row),
            "n_tracks": len(row["tracks"]),
            "n_windows": len(first_model(row["annotations"])),
            "n_dropped_tracks": row["n_dropped_tracks"],
            "finished_at": now,
            "attempt": row["attempt"],
            "config_hash": run.config_hash,
            "lease": lease,
        }
        for row in rows
    ]


def segment_state(row: dict[str, Any]) -> str:
    """`failed`, `annotated` or `no_face`."""
    if row["failed"]:
        return "failed"
    return "annotated" if row["annotations"] else "no_face"


def _identity(row: dict[str, Any], run: RunStamp) -> dict[str, Any]:
    return {
        "video_id": row["video_id"],
        "uri": row["uri"],
        "segment": row["segment"],
        "run_id": run.run_id,
        "schema_version": SCHEMA_VERSION,
    }
