"""Videos -> segments, and the shape that a segment's row takes as it moves on."""

from __future__ import annotations

import math
from typing import Any

from emolake.pipeline.config import DecodeConfig
from emolake.pipeline.errors import Reason
from emolake.pipeline.video.decode import VideoInfo, segment_spans

_CARRIED = (
    *("video_id", "uri", "size", "signed_uri", "corpus", "attempt"),
    *("transcript_uri", "age", "gender", "race", "pictures"),
)
_LEAST_BYTES_A_SECOND = 16  # a still picture at one frame a second takes more
_UNKNOWN = {"duration_s": None, "fps": None, "width": None, "height": None, "codec": None}


def segment_rows(
    video: dict[str, Any], info: VideoInfo, config: DecodeConfig, *, whole: bool = False
) -> list[dict[str, Any]]:
    """Rows of schema.SEGMENT_ROW for the wanted segments of a row of schema.VIDEO_ROW.

    whole: all of the video as one segment. So is one whose header promises more time than its bytes
    can hold: a damaged header may promise a century, and that is a million segments.
    """
    length = None if whole or not _believable(info.duration_s, video["size"]) else info.duration_s
    spans = segment_spans(length, config)
    known = {
        "duration_s": info.duration_s,
        "fps": info.fps,
        "width": info.width,
        "height": info.height,
        "codec": info.codec,
    }
    wanted = video["segments"]
    rows = [
        _row(video, known, k, len(spans), start, end)
        for k, (start, end) in enumerate(spans)
        if wanted is None or k in wanted
    ]
    return [row for row in (_within(row, video["span"]) for row in rows) if row is not None]


def _row(
    video: dict[str, Any], known: dict[str, Any], index: int, count: int, start: float, end: float
) -> dict[str, Any]:
    return (
        {name: video[name] for name in _CARRIED}
        | known
        | {
            "segment": index,
            "n_segments": count,
            "start_s": start,
            "end_s": end,
            "reason": None,
            "detail": None,
            "failed": False,
            "bytes_read": 0,
            "requests": 0,
        }
    )


def _within(row: dict[str, Any], span: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of a segment that lies in the span; None where there is none."""
    if span is None:
        return row
    start = max(row["start_s"], span["start_s"] or 0.0)
    end = min(row["end_s"], math.inf if span["end_s"] is None else span["end_s"])
    return row | {"start_s": start, "end_s": end} if start < end else None


def pictures_row(video: dict[str, Any]) -> dict[str, Any]:
    """The one segment of a row whose pictures take the place of a video."""
    return _row(video, _UNKNOWN, 0, 1, 0.0, math.inf)


def _believable(duration_s: float | None, size: int | None) -> bool:
    # No bytes at all and a duration: a server that did not tell its length.
    return duration_s is None or not size or duration_s * _LEAST_BYTES_A_SECOND <= size


def failed_video(video: dict[str, Any], reason: Reason, detail: str) -> list[dict[str, Any]]:
    """The rows of a video that cannot even be opened: segment 0 of 1, or those of its segments that were to
    be done, where it has been opened before. The others stand."""
    count = video["n_segments"] or 1
    return [
        failed_segment(_row(video, _UNKNOWN, k, count, 0.0, math.inf), reason, detail)
        for k in (video["segments"] or range(count))
    ]


def failed_segment(segment: dict[str, Any], reason: str, detail: str) -> dict[str, Any]:
    """The same segment, marked failed."""
    return segment | {"reason": reason, "detail": detail, "failed": True}


def too_crowded(segment: dict[str, Any], windows: int) -> dict[str, Any]:
    """The same segment, marked failed since a row, or the child that makes it, cannot hold its windows."""
    told = f"{windows} windows of faces at once; lower decode.segment_seconds"
    return failed_segment(segment, "out_of_memory", told)


def without_faces(segment: dict[str, Any], face_seconds: float = 0.0) -> dict[str, Any]:
    """A row of schema.FACES_ROW with nothing found in it."""
    return segment | {
        "tracks": [],
        "windows": [],
        "n_dropped_tracks": 0,
        "sound": None,
        "cues": None,
        "frames_seen": 0,
        "video_seconds": 0.0,
        "face_seconds": face_seconds,
    }
