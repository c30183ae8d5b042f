"""Tables -> what the page shows: totals, failures, runs, and a timeline for each video."""

from __future__ import annotations

import base64
import posixpath
from dataclasses import dataclass, field
from typing import Any

from emolake.pipeline.lake.commit import first_model, time_weighted_scores
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.ledger import newest_versions, read_ledger, video_states
from emolake.pipeline.lake.reading import live_rows
from emolake.pipeline.lake.runs import read_runs

_COLUMNS = [
    "model",
    "video_id",
    "segment",
    "track_id",
    "window",
    "start_s",
    "end_s",
    "emotion",
    "confidence",
    "scores",
]
MOST_TIMELINES = 1000
_MOMENTS = 60


@dataclass(frozen=True)
class Span:
    """One window on a timeline."""

    start_s: float
    end_s: float
    emotion: str
    confidence: float
    scores: list[tuple[str, float]]
    model: str


@dataclass
class VideoReport:
    """One video. lanes: (segment, track_id, model) -> its windows in time order."""

    video_id: str
    uri: str
    state: str
    reason: str | None
    detail: str | None
    duration_s: float
    lanes: dict[tuple[int, int, str], list[Span]] = field(default_factory=dict)
    dominant: str | None = None
    counted: list[Span] = field(default_factory=list)
    """One a window, whatever the number of models."""
    thumbnails: list[str] = field(default_factory=list)
    """JPEGs in base64, one a track, where the user stored them."""

    @property
    def tracks(self) -> int:
        return len({lane[:2] for lane in self.lanes if lane[1] >= 0})

    @property
    def name(self) -> str:
        return posixpath.basename(self.uri) or self.uri


@dataclass(frozen=True)
class Report:
    """The whole page's content. seconds: time per emotion over the whole output. over_time: for each
    of equal stretches of `stretch_s`, counted from each video's start, the seconds of each emotion."""

    output: str
    videos: list[VideoReport]
    states: dict[str, int]
    hours: float
    tracks: int
    windows: int
    seconds: dict[str, float]
    over_time: list[dict[str, float]]
    stretch_s: float
    failures: list[tuple[str, int, list[str]]]
    runs: list[dict[str, Any]]
    models: int
    """Distinct models in the rows."""


def read_report(lake: Lake) -> Report:
    """Reads what counts by the ledger; annotations of commits that do not count are left out."""
    ledger = newest_versions(read_ledger(lake).live)
    states = video_states(ledger)
    first_rows = {row["video_id"]: row for row in reversed(ledger.to_pylist())}
    videos = {
        video_id: VideoReport(
            video_id=video_id,
            uri=state.uri,
            state=state.state,
            reason=state.reason,
            detail=first_rows[video_id]["detail"],
            duration_s=first_rows[video_id]["duration_s"] or 0.0,
        )
        for video_id, state in states.items()
    }
    seconds: dict[str, float] = {}
    windows = 0
    weighed: dict[str, list[dict[str, Any]]] = {}
    rows = _annotations(lake)
    # Where several models read the same windows, the first one's are what is added up.
    counted = {id(row) for row in first_model(rows)}
    for row in rows:
        video = videos.get(row["video_id"])
        if video is None:
            continue
        span = Span(
            row["start_s"], row["end_s"], row["emotion"], row["confidence"],
            sorted(row["scores"], key=lambda s: -s[1]), row["model"],
        )  # fmt: skip
        key = (row["segment"], row["track_id"], row["model"])
        video.lanes.setdefault(key, []).append(span)
        video.duration_s = max(video.duration_s, span.end_s)
        if id(row) not in counted:
            continue
        video.counted.append(span)
        seconds[span.emotion] = seconds.get(span.emotion, 0.0) + span.end_s - span.start_s
        windows += 1
        weighed.setdefault(row["video_id"], []).append(row)
    for track in live_rows(lake, "tracks", ["video_id", "thumbnail"]).to_pylist():
        if track["thumbnail"] is not None and track["video_id"] in videos:
            picture = base64.b64encode(track["thumbnail"]).decode()
            videos[track["video_id"]].thumbnails.append(picture)
    for video_id, windows_of in weighed.items():
        scores = time_weighted_scores(windows_of)
        videos[video_id].dominant = max(scores, key=lambda label: scores[label])
    for video in videos.values():
        for lane in video.lanes.values():
            lane.sort(key=lambda span: span.start_s)
    stretch_s, over_time = _over_time(list(videos.values()))
    ordered = sorted(videos.values(), key=lambda v: (v.state == "failed", v.uri))
    return Report(
        output=lake.uri,
        videos=ordered,
        states={s: sum(v.state == s for v in ordered) for s in ("annotated", "no_face", "failed")},
        hours=sum(v.duration_s for v in ordered) / 3600,
        tracks=sum(v.tracks for v in ordered),
        windows=windows,
        seconds=dict(sorted(seconds.items(), key=lambda item: -item[1])),
        over_time=over_time,
        stretch_s=stretch_s,
        failures=_failures(ordered),
        runs=read_runs(lake),
        models=len({row["model"] for row in rows}),
    )


def _annotations(lake: Lake) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = live_rows(lake, "annotations", _COLUMNS).to_pylist()
    return rows


def _over_time(videos: list[VideoReport]) -> tuple[float, list[dict[str, float]]]:
    """Length of a stretch, and per stretch the seconds of each emotion; nothing without windows."""
    spans = [span for video in videos for span in video.counted]
    end = max((span.end_s for span in spans), default=0.0)
    if end <= 0:
        return 0.0, []
    stretch_s = end / _MOMENTS
    stretches: list[dict[str, float]] = [{} for _ in range(_MOMENTS)]
    for span in spans:
        first = min(int(span.start_s / stretch_s), _MOMENTS - 1)
        last = min(int(span.end_s / stretch_s), _MOMENTS - 1)
        for k in range(first, last + 1):
            shared = min(span.end_s, (k + 1) * stretch_s) - max(span.start_s, k * stretch_s)
            if shared > 0:
                stretches[k][span.emotion] = stretches[k].get(span.emotion, 0.0) + shared
    return stretch_s, stretches


def _failures(videos: list[VideoReport]) -> list[tuple[str, int, list[str]]]:
    """(reason, count, first details), the most frequent first."""
    by_reason: dict[str, list[str]] = {}
    for video in videos:
        if video.state == "failed":
            told = f"{video.name}: {video.detail or ''}".rstrip(": ")
            by_reason.setdefault(video.reason or "unknown", []).append(told)
    ranked = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return [(reason, len(details), details[:3]) for reason, details in ranked]
