"""Tables -> what the page shows: totals, failures, runs, and a timeline for each video."""

from __future__ import annotations

import base64
import posixpath
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from emolake.pipeline.lake.commit import first_model, seconds_of, time_weighted_scores
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.ledger import ledger_parts, newest_versions, video_states
from emolake.pipeline.lake.reading import Snapshot, in_one_moment
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
_DETAILS = 3  # of a reason to fail


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
    weight: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Score times seconds, by label."""
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
    """The whole page's content. videos: those that are shown, the first by name, failed ones last. seconds:
    time per emotion over the whole output. over_time: for each of equal stretches of `stretch_s`, counted
    from each video's start, the seconds of each emotion."""

    output: str
    videos: list[VideoReport]
    total: int
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
    """Reads what counts by the ledger, part by part: memory holds the videos that are shown, and sums."""
    return in_one_moment(lake, _report)


def _report(snapshot: Snapshot) -> Report:
    videos = _Videos()
    for ledger in ledger_parts(snapshot.ledger):
        videos.add(newest_versions(ledger.live))
    shown = {video.video_id: video for video in videos.shown}
    sums = _Sums()
    for rows in snapshot.tables("annotations", _COLUMNS):
        sums.add(rows)
        _draw(rows.filter(pc.is_in(rows["video_id"], pa.array(shown, pa.string()))), shown)
    for rows in snapshot.tables("tracks", ["video_id", "thumbnail"], videos.commits_of_shown):
        for track in rows.filter(pc.is_valid(rows["thumbnail"])).to_pylist():
            if track["video_id"] in shown:
                picture = base64.b64encode(track["thumbnail"]).decode()
                shown[track["video_id"]].thumbnails.append(picture)
    stretch_s, over_time = sums.over_time()
    return Report(
        output=snapshot.lake.uri,
        videos=videos.shown,
        total=videos.states.total(),
        states={s: videos.states[s] for s in ("annotated", "no_face", "failed")},
        hours=videos.seconds / 3600,
        tracks=sums.tracks,
        windows=sums.windows,
        seconds=sums.seconds(),
        over_time=over_time,
        stretch_s=stretch_s,
        failures=videos.failures(),
        runs=read_runs(snapshot.lake),
        models=len(sums.models),
    )


class _Videos:
    """What the ledger tells: sums, and the videos to be shown."""

    def __init__(self) -> None:
        self.states = Counter[str]()
        self.seconds = 0.0
        self.shown: list[VideoReport] = []
        self._commits: dict[str, set[str]] = {}
        self._reasons = Counter[str]()
        self._details: dict[str, list[tuple[str, str]]] = {}

    def add(self, rows: pa.Table) -> None:
        """rows: the newest of each segment, all of each video that occurs."""
        columns = ["video_id", "detail", "duration_s", "commit_id"]
        first: dict[str, dict[str, Any]] = {}
        for row in rows.select(columns).to_pylist():
            first.setdefault(row["video_id"], row)
            self._commits.setdefault(row["video_id"], set()).add(row["commit_id"])
        for video_id, state in video_states(rows).items():
            told = first[video_id]
            video = VideoReport(
                video_id=video_id,
                uri=state.uri,
                state=state.state,
                reason=state.reason,
                detail=told["detail"],
                duration_s=told["duration_s"] or 0.0,
            )
            self.states[state.state] += 1
            self.seconds += video.duration_s
            if state.state == "failed":
                reason = state.reason or "unknown"
                self._reasons[reason] += 1
                line = f"{video.name}: {video.detail or ''}".rstrip(": ")
                details = self._details.setdefault(reason, [])
                self._details[reason] = sorted([*details, (video.uri, line)])[:_DETAILS]
            self.shown.append(video)
        self.shown = sorted(self.shown, key=lambda v: (v.state == "failed", v.uri))[:MOST_TIMELINES]
        kept = {video.video_id for video in self.shown}
        self._commits = {name: told for name, told in self._commits.items() if name in kept}

    @property
    def commits_of_shown(self) -> set[str]:
        return set().union(*self._commits.values())

    def failures(self) -> list[tuple[str, int, list[str]]]:
        """(reason, count, first details), the most frequent first."""
        return [
            (reason, count, [line for _, line in self._details[reason]])
            for reason, count in self._reasons.most_common()
        ]


class _Sums:
    """What all windows together tell."""

    def __init__(self) -> None:
        self.windows = self.tracks = 0
        self.models: set[str] = set()
        self._over_time: dict[str, Histogram] = {}

    def add(self, rows: pa.Table) -> None:
        """rows: of one file, which holds all windows of a segment."""
        self.models.update(rows["model"].unique().to_pylist())
        faces = rows.filter(pc.greater_equal(rows["track_id"], 0))
        self.tracks += faces.group_by(["video_id", "segment", "track_id"]).aggregate([]).num_rows
        # Where several models read the same windows, the first one's are what is added up.
        at = pa.array(range(rows.num_rows), pa.int64())
        window = ["video_id", "segment", "track_id", "window"]
        one = rows.append_column("at", at).group_by(window).aggregate([("at", "min")])
        counted = rows.select(["emotion", "start_s", "end_s"]).take(one["at_min"])
        self.windows += counted.num_rows
        for emotion in counted["emotion"].unique().to_pylist():
            spans = counted.filter(pc.equal(counted["emotion"], emotion))
            histogram = self._over_time.setdefault(emotion, Histogram())
            histogram.add(spans["start_s"].to_numpy(), spans["end_s"].to_numpy())

    def seconds(self) -> dict[str, float]:
        """By emotion, the commonest first."""
        told = {emotion: h.seconds for emotion, h in self._over_time.items()}
        return dict(sorted(told.items(), key=lambda item: -item[1]))

    def over_time(self) -> tuple[float, list[dict[str, float]]]:
        """Length of a stretch, and per stretch the seconds of each emotion; nothing without windows."""
        end = max((h.end_s for h in self._over_time.values()), default=0.0)
        if end <= 0:
            return 0.0, []
        edges = np.linspace(0.0, end, _MOMENTS + 1)
        stretches: list[dict[str, float]] = [{} for _ in range(_MOMENTS)]
        for emotion, histogram in self._over_time.items():
            for k, seconds in enumerate(np.diff(histogram.until(edges))):
                if seconds > 1e-9:
                    stretches[k][emotion] = float(seconds)
        return float(edges[1]), stretches


class Histogram:
    """How long spans cover each moment, in bins that grow wider as spans lie further out."""

    _BINS = 1 << 14

    def __init__(self) -> None:
        self.seconds = self.end_s = 0.0
        self._width = 0.125
        self._covered = np.zeros(self._BINS)

    def add(self, start_s: NDArray[np.float64], end_s: NDArray[np.float64]) -> None:
        self.seconds += float((end_s - start_s).sum())
        self.end_s = max(self.end_s, float(end_s.max(initial=0.0)))
        while self.end_s >= self._width * self._BINS:
            pairs = self._covered.reshape(-1, 2).sum(1)
            self._covered = np.concatenate([pairs, np.zeros(self._BINS // 2)])
            self._width *= 2
        # Whole bins from the one after the start to the one before the end, and a part of each of those.
        steps, parts = np.zeros(self._BINS + 1), np.zeros(self._BINS)
        for times, sign in ((start_s, 1.0), (end_s, -1.0)):
            bins = np.floor(times / self._width).astype(np.int64)
            np.add.at(steps, bins + 1, sign)
            np.add.at(parts, bins, sign * ((bins + 1) * self._width - times))
        self._covered += self._width * np.cumsum(steps)[:-1] + parts

    def until(self, moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds covered before each moment."""
        edges = np.arange(self._BINS + 1) * self._width
        return np.interp(moments, edges, np.concatenate([[0.0], np.cumsum(self._covered)]))


def _draw(rows: pa.Table, shown: dict[str, VideoReport]) -> None:
    """The windows of a file, into the timelines of their videos."""
    told = rows.to_pylist()
    weighed: dict[str, list[dict[str, Any]]] = {}
    for row in told:
        video = shown[row["video_id"]]
        span = Span(
            row["start_s"], row["end_s"], row["emotion"], row["confidence"],
            sorted(row["scores"], key=lambda s: -s[1]), row["model"],
        )  # fmt: skip
        key = (row["segment"], row["track_id"], row["model"])
        video.lanes.setdefault(key, []).append(span)
        video.lanes[key].sort(key=lambda span: span.start_s)
        video.duration_s = max(video.duration_s, span.end_s)
    for row in first_model(told):
        weighed.setdefault(row["video_id"], []).append(row)
    for video_id, windows in weighed.items():
        for label, score in time_weighted_scores(windows).items():
            length = sum(map(seconds_of, windows))
            shown[video_id].weight[label] += score * length
        weight = shown[video_id].weight
        shown[video_id].dominant = max(weight, key=lambda label: weight[label])
