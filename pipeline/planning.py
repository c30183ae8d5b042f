"""What is left to do: the videos of the input against the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config import Config
from pipeline.corpus import Video
from pipeline.errors import PASSING_REASONS, UserError
from pipeline.lake.ledger import Ledger, VideoState, newest_versions, video_states
from pipeline.schema import VIDEO_ROW


@dataclass(frozen=True)
class Plan:
    """todo: rows of schema.VIDEO_ROW; the counters say why a video is done, or is not."""

    todo: pa.Table
    total: int
    why_done: Counter[str]
    why_skipped: Counter[str]


def make_plan(
    videos: list[Video],
    ledger: Ledger,
    config: Config,
    config_hash: str,
    *,
    reprocess: bool = False,
    retry_failed: bool = False,
    since: float | None = None,
) -> Plan:
    """Compares by video_id, so an object that has changed counts as new. since: seconds since 1970; a
    video that was last written before is left alone, one whose storage does not tell is not.

    UserError where the output holds rows of another configuration and `reprocess` was not asked.
    """
    known = video_states(newest_versions(ledger.rows))
    known_uris = {state.uri for state in known.values()}
    if not reprocess:
        _refuse_other_configuration(ledger, config_hash)
    rows, done, skipped = [], Counter[str](), Counter[str]()
    for video in videos:
        if since is not None and video.modified is not None and video.modified < since:
            skipped["older than --since"] += 1
            continue
        state = known.get(video.video_id)
        if reprocess or state is None:
            changed = state is None and video.uri in known_uris
            done["reprocess" if state is not None else "changed" if changed else "new"] += 1
            rows.append(_row(video, config, None, 1))
            continue
        missing = sorted(set(range(state.n_segments)) - state.segments)
        again = _retryable(state, config.limits.max_attempts, retry_failed)
        if missing or again:
            done["unfinished" if missing else "retry"] += 1
            attempt = max((state.failed[k][1] + 1 for k in again), default=1)
            # A file that could not be opened was entered as one segment; it may have more.
            whole = state.n_segments == 1
            rows.append(_row(video, config, None if whole else sorted({*missing, *again}), attempt))
        else:
            skipped["failed before" if state.state == "failed" else "done"] += 1
    return Plan(pa.Table.from_pylist(rows, VIDEO_ROW), len(videos), done, skipped)


def _retryable(state: VideoState, max_attempts: int, retry_failed: bool) -> list[int]:
    return [
        segment
        for segment, (reason, attempt) in state.failed.items()
        if retry_failed or (reason in PASSING_REASONS and attempt < max_attempts)
    ]


def _refuse_other_configuration(ledger: Ledger, config_hash: str) -> None:
    others = set(ledger.live["config_hash"].to_pylist()) - {config_hash}
    if others:
        raise UserError(
            f"the output holds rows made with another model or configuration ({sorted(others)[0]}, "
            f"this is {config_hash}); give --reprocess to replace them, or another --output"
        )


def _row(video: Video, config: Config, segments: list[int] | None, attempt: int) -> dict[str, Any]:
    used = video.attributes if config.annotator.use_attributes else {}
    return {
        "video_id": video.video_id,
        "uri": video.uri,
        "size": video.size,
        "corpus": video.corpus or config.corpus,
        "attempt": attempt,
        "segments": segments,
        "missing": video.missing,
        "transcript_uri": video.transcript_uri,
        **{name: used.get(name) for name in ("age", "gender", "race")},
    }
