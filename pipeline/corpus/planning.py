"""What is left to do: the videos of the input against the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from emolake.pipeline.config import Config
from emolake.pipeline.errors import PASSING_REASONS, UserError
from emolake.pipeline.labels import ATTRIBUTES
from emolake.pipeline.lake.ledger import (
    Ledger,
    VideoState,
    ledger_of,
    newest_of_each,
    newest_versions,
    video_states,
)
from emolake.pipeline.lake.schema import VIDEO_ROW
from emolake.pipeline.storage.shards import Shards, together

_CARRIED = ("video_id", "uri", "size", "signed_uri", "missing", "transcript_uri")


@dataclass(frozen=True)
class Plan:
    """todo: rows of schema.VIDEO_ROW; total: videos of the input, each once; repeated: how often one
    was mentioned again; the counters say why a video is done, or is not."""

    todo: Shards
    total: int
    repeated: int
    why_done: Counter[str]
    why_skipped: Counter[str]


@dataclass(frozen=True)
class Asked:
    """What the user wants done besides what is new. since: seconds since 1970; a video that was last
    written before is left alone, one whose storage does not tell is not. forgotten: uris that are not to be
    done again."""

    reprocess: bool = False
    retry_failed: bool = False
    since: float | None = None
    forgotten: Container[str] = ()


def make_plan(
    videos: Shards, ledger: Shards, config: Config, config_hash: str, asked: Asked = Asked()
) -> Plan:
    """Compares by video_id, so an object that has changed counts as new. videos: schema.LISTED_ROW;
    ledger: see `ledger_shards`. Memory is bounded: the two are compared part by part.

    UserError where the output holds rows of another configuration and `reprocess` was not asked.
    """
    plan = Plan(Shards(VIDEO_ROW), 0, 0, Counter(), Counter())
    total = repeated = 0
    for listed, rows in together(videos, ledger):
        known = ledger_of(rows)
        if not asked.reprocess:
            _refuse_other_configuration(known, config_hash)
        first: dict[str, dict[str, Any]] = {}
        for row in listed.to_pylist():
            kept = first.setdefault(row["uri"], row)
            if kept["missing"] is not None and row["missing"] is None:
                first[row["uri"]] = row  # signed anew, say, where the first has expired
        total += len(first)
        repeated += listed.num_rows - len(first)
        plan.todo.add(_todo(first.values(), known, plan, config, asked))
    return replace(plan, total=total, repeated=repeated)


def _todo(
    videos: Iterable[dict[str, Any]], ledger: Ledger, plan: Plan, config: Config, asked: Asked
) -> pa.Table:
    """The videos among these that are to be done; the plan's counters take them all in."""
    done, skipped = plan.why_done, plan.why_skipped
    videos = list(videos)
    kept = [video for video in videos if video["uri"] not in asked.forgotten]
    if len(kept) < len(videos):
        skipped["forgotten"] += len(videos) - len(kept)
    known = video_states(newest_versions(ledger.rows))
    known_uris = {state.uri for state in known.values()}
    rows = []
    for video in kept:
        written = video["modified"]
        if asked.since is not None and written is not None and written < asked.since:
            skipped["older than --since"] += 1
            continue
        state = known.get(video["video_id"])
        if state is None and video["missing"] is not None and video["uri"] in known_uris:
            skipped["unreachable"] += 1  # what is known of it stays
            continue
        if asked.reprocess or state is None:
            changed = state is None and video["uri"] in known_uris
            done["reprocess" if state is not None else "changed" if changed else "new"] += 1
            rows.append(_row(video, config, None, 1, None))
            continue
        missing = sorted(set(range(state.n_segments)) - state.segments)
        again = _retryable(state, config.limits.max_attempts, asked.retry_failed)
        if missing or again:
            done["unfinished" if missing else "retry"] += 1
            attempt = max((state.failed[k][1] + 1 for k in again), default=1)
            # A file that could not be opened was entered as one segment; it may have more.
            whole = state.n_segments == 1
            segments = None if whole else sorted({*missing, *again})
            rows.append(_row(video, config, segments, attempt, state.n_segments))
        else:
            skipped["failed before" if state.state == "failed" else "done"] += 1
    return pa.Table.from_pylist(rows, VIDEO_ROW)


def left_of(todo: Shards, ledger: Shards, run_id: str, lease: int) -> Shards:
    """What of a run's plan (schema.VIDEO_ROW) it has not committed yet. ledger: see `ledger_shards`; lease:
    the run's first, since another may have had its id."""
    left = Shards(VIDEO_ROW)
    for planned, rows in together(todo, ledger):
        committed: dict[str, dict[int, set[int]]] = {}
        for row in of_run(rows, run_id, lease).to_pylist():
            cut = committed.setdefault(row["video_id"], {})
            cut.setdefault(row["n_segments"], set()).add(row["segment"])
        kept = []
        for video in planned.to_pylist():
            if video["video_id"] in committed:
                done = committed[video["video_id"]]
                whole = video["segments"] is None  # however many it was believed to have
                count = max(done) if whole else video["n_segments"]
                wanted = range(count) if whole else video["segments"]
                missing = sorted({*wanted} - done.get(count, set()))
                video |= {"segments": missing, "n_segments": count}
            if video["segments"] != []:
                kept.append(video)
        left.add(pa.Table.from_pylist(kept, VIDEO_ROW))
    return left


def of_run(rows: pa.Table, run_id: str, lease: int) -> pa.Table:
    """The ledger rows that a run has committed since it took a lease."""
    since = pc.greater_equal(pc.fill_null(rows["lease"], 0), lease)
    return rows.filter(pc.and_(pc.equal(rows["run_id"], run_id), since))


def _retryable(state: VideoState, max_attempts: int, retry_failed: bool) -> list[int]:
    return [
        segment
        for segment, (reason, attempt) in state.failed.items()
        if retry_failed or (reason in PASSING_REASONS and attempt < max_attempts)
    ]


def _refuse_other_configuration(ledger: Ledger, config_hash: str) -> None:
    others = set(newest_of_each(ledger.rows)["config_hash"].to_pylist()) - {config_hash}
    if others:
        raise UserError(
            f"the output holds rows made with another model or configuration ({sorted(others)[0]}, "
            f"this is {config_hash}); give --reprocess to replace them, or another --output"
        )


def _row(
    video: dict[str, Any],
    config: Config,
    segments: list[int] | None,
    attempt: int,
    n_segments: int | None,
) -> dict[str, Any]:
    used = ATTRIBUTES if config.annotator.use_attributes else ()
    return {
        **{name: video[name] for name in _CARRIED},
        "corpus": video["corpus"] or config.corpus,
        "attempt": attempt,
        "segments": segments,
        "n_segments": n_segments,
        **{name: video[name] for name in used},
    }


def known_sizes(videos: pa.Table) -> pa.ChunkedArray:
    """Bytes of each (rows with uri and size), null where nobody told: none at all, of what is no local file,
    is how a server's silence about a length was noted."""
    empty = pc.and_(pc.equal(videos["size"], 0), pc.match_substring(videos["uri"], "://"))
    sizes: pa.ChunkedArray = pc.if_else(empty, pa.scalar(None, pa.int64()), videos["size"])
    return sizes
