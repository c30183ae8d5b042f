"""The write task's work: rows of annotated segments -> one commit per corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from emolake.pipeline.lake.layout import LEDGER, Lake, new_commit_id
from emolake.pipeline.lake.schema import ANNOTATIONS, SCHEMA_VERSION, TRACKS, VIDEOS, sort_keys


@dataclass(frozen=True)
class RunStamp:
    """What a run writes into every row. date: the UTC day on which it started."""

    run_id: str
    date: str
    config_hash: str


def commit_segments(
    lake: Lake, rows: list[dict[str, Any]], run: RunStamp, fence: Callable[[], None]
) -> None:
    """Commits segments (rows of schema.ANNOTATED_ROW), ledger last.

    `fence` is called right before the ledger is written and raises where this run has lost its
    lease; what was written by then is an orphan that recovery removes.
    """
    by_corpus: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_corpus.setdefault(row["corpus"], []).append(row)
    for corpus, members in sorted(by_corpus.items()):
        commit_id = new_commit_id()
        tables = {
            "annotations": _table(_annotations(members, run), ANNOTATIONS),
            "tracks": _table(_tracks(members, run), TRACKS),
            LEDGER: _table(_ledger(members, run, commit_id), VIDEOS),
        }
        write_commit(lake, tables, corpus, run.date, commit_id, fence)


def write_commit(
    lake: Lake,
    tables: dict[str, pa.Table],
    corpus: str,
    date: str,
    commit_id: str,
    fence: Callable[[], None],
) -> None:
    """The commit protocol: data files in any order, then the fence, then the ledger file.

    A writer that fails, or that the fence stops, takes its data files away again: whoever owns the
    output by then may have ended, and nobody else would.
    """
    written = []
    try:
        for name, table in tables.items():
            if name != LEDGER and table.num_rows:
                written.append(lake.data_path(name, corpus, date, commit_id))
                lake.write_table(written[-1], table)
        fence()
    except Exception:
        for path in written:
            lake.remove(path)
        raise
    lake.write_table(lake.data_path(LEDGER, corpus, date, commit_id), tables[LEDGER])


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
        for track in row["tracks"]:
            windows = [
                a for a in first_model(row["annotations"]) if a["track_id"] == track["track_id"]
            ]
            scores = time_weighted_scores(windows)
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


def time_weighted_scores(annotations: list[dict[str, Any]]) -> dict[str, float]:
    """Mean score of each label over windows, each weighted by its length."""
    total: dict[str, float] = {}
    weight = 0.0
    for annotation in annotations:
        # A window of a single frame has hardly any length and must still count.
        length = max(annotation["end_s"] - annotation["start_s"], 1e-3)
        weight += length
        for label, score in annotation["scores"]:
            total[label] = total.get(label, 0.0) + length * score
    return {label: value / weight for label, value in total.items()}


def _ledger(rows: list[dict[str, Any]], run: RunStamp, commit_id: str) -> list[dict[str, Any]]:
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
            "commit_id": commit_id,
            "finished_at": now,
            "attempt": row["attempt"],
            "config_hash": run.config_hash,
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
