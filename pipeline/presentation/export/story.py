"""What the tables say of one video, ready to be drawn or written."""

from __future__ import annotations

import posixpath
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.commit import first_model
from emolake.pipeline.lake.ledger import ledger_parts
from emolake.pipeline.lake.reading import Snapshot, in_one_moment, opened
from emolake.pipeline.presentation.blur import all_told

_SHORTEST_ID = 6  # letters of a video_id
_MOST_NAMED = 5
_TOLD = ["video_id", "uri", "commit_id", "duration_s", "fps", "n_segments", "state", "n_tracks"]
_TOLD += ["n_dropped_tracks"]


@dataclass(frozen=True)
class Face:
    """One track. windows: rows of schema.ANNOTATIONS in time order; path: (N, 5) float64 of time_s,
    x1, y1, x2, y2 in fractions of the frame; bridged: (N,) bool."""

    segment: int
    track_id: int
    start_s: float
    end_s: float
    windows: list[dict[str, Any]]
    path: NDArray[np.float64]
    bridged: NDArray[np.bool_]

    @property
    def name(self) -> str:
        return f"face {self.segment}.{self.track_id}"

    def box(self, time_s: float) -> tuple[NDArray[np.float64], bool] | None:
        """(4,) box at a time and whether it is bridged; None outside the track."""
        if not len(self.path) or not self.start_s <= time_s <= self.end_s:
            return None
        box = np.array([np.interp(time_s, self.path[:, 0], self.path[:, k]) for k in range(1, 5)])
        nearest = int(np.abs(self.path[:, 0] - time_s).argmin())
        return box, bool(self.bridged[nearest])

    def window(self, time_s: float) -> dict[str, Any] | None:
        """The annotation that holds at a time."""
        at = bisect_right([w["start_s"] for w in self.windows], time_s) - 1
        return self.windows[at] if at >= 0 and time_s <= self.windows[at]["end_s"] else None


@dataclass(frozen=True)
class Story:
    """One video and its faces, by start. whole: all of it was analysed, and every face that was met is
    here."""

    video_id: str
    uri: str
    duration_s: float
    faces: list[Face]
    fps: float | None = None
    whole: bool = False

    @property
    def name(self) -> str:
        return posixpath.basename(self.uri) or self.uri


def read_story(output: str, video: str, options: Mapping[str, Any] | None = None) -> Story:
    """video: its uri, its file name with or without its ending, or the start of its video_id. UserError
    where none or more than one match."""
    return in_one_moment(opened(output, options), partial(story_of, video=video))


def story_of(snapshot: Snapshot, video: str) -> Story:
    """The same of what was read already."""
    rows = [row for part in ledger_parts(snapshot.ledger) for row in _named(part.live, video)]
    rows = (
        [row for row in rows if video in (row["uri"], row["video_id"])]
        or [row for row in rows if _is_file(row["uri"], video)]
        or rows
    )
    found = {(row["video_id"], row["uri"]) for row in rows}
    if not found:
        raise UserError(
            f"{snapshot.lake.uri} holds no video {video!r}; name a uri, a file name or a video_id"
        )
    if len(found) > 1:
        names = ", ".join(f"{uri} ({video_id})" for video_id, uri in sorted(found)[:_MOST_NAMED])
        raise UserError(f"{video!r} means {len(found)} videos; name one by its video_id: {names}")
    ((video_id, uri),) = found
    commits = {row["commit_id"] for row in rows}
    windows, tracks = (
        [
            row
            for rows_of_file in snapshot.tables(name, commits=commits)
            for row in _of(rows_of_file, video_id)
        ]
        for name in ("annotations", "tracks")
    )
    by_track: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for window in sorted(first_model(windows), key=lambda w: w["start_s"]):
        by_track.setdefault((window["segment"], window["track_id"]), []).append(window)
    faces = [face_of(track, by_track[track["segment"], track["track_id"]]) for track in tracks]
    lengths = [row["duration_s"] or 0.0 for row in rows]
    duration = max([*lengths, *(face.end_s for face in faces)])
    faces.sort(key=lambda f: (f.start_s, f.track_id))
    return Story(video_id, uri, duration, faces, rows[0]["fps"], all_told(rows, tracks))


def _is_file(uri: str, name: str) -> bool:
    return name in (file := posixpath.basename(uri), posixpath.splitext(file)[0])


def _named(ledger: pa.Table, video: str) -> list[dict[str, Any]]:
    uri, video_id = ledger["uri"], ledger["video_id"]
    file = rf"(^|/){re.escape(video)}(\.[^./]+)?$"
    named = pc.or_(pc.equal(uri, video), pc.match_substring_regex(uri, file))
    # Of a few letters a file's name is likelier to be meant, which may be gone.
    whole = pc.equal(video_id, video)
    begun = pc.starts_with(video_id, video) if len(video) >= _SHORTEST_ID else whole
    meant = ledger.filter(pc.or_(named, begun))
    rows: list[dict[str, Any]] = meant.select(_TOLD).to_pylist()
    return rows


def _of(table: pa.Table, video_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.filter(pc.equal(table["video_id"], video_id)).to_pylist(
        maps_as_pydicts="strict"
    )
    return rows


def face_of(track: dict[str, Any], windows: list[dict[str, Any]]) -> Face:
    """windows: the rows of the track's windows, in time order."""
    path = track["path"] or []
    return Face(
        track["segment"],
        track["track_id"],
        track["start_s"],
        track["end_s"],
        windows,
        np.array([[p["time_s"], p["x1"], p["y1"], p["x2"], p["y2"]] for p in path]).reshape(-1, 5),
        np.array([p["interpolated"] for p in path], bool),
    )
