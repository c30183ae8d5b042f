"""Face actors: CPU workers that supervise a decoding child and never touch a video themselves."""

from __future__ import annotations

import base64
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from emolake.actors.child import Child, ChildDied, ChildTimedOut
from emolake.actors.device import DEVICE_FAILED, device_failed, in_hand
from emolake.pipeline.config import DecodeConfig, FacesConfig, LimitsConfig, WindowsConfig
from emolake.pipeline.corpus.segments import (
    failed_segment,
    failed_video,
    pictures_row,
    segment_rows,
    too_crowded,
    without_faces,
)
from emolake.pipeline.errors import DeviceFailed, JobFailed, Reason
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.lake.schema import FACES_ROW, SEGMENT_ROW
from emolake.pipeline.video.decode import VideoInfo

_CHILD = "emolake.actors.face_child"
_START_TIMEOUT_S = 120.0
_STARTS = 3
_MAX_LONGEST_SEGMENT_S = 3600.0


@dataclass(frozen=True)
class FaceSettings:
    """What a face actor needs to know; storage_options may be secret.

    device: where the detector runs; network: whether any video lies beyond this machine's files;
    corruption: how labelled pictures are to be spoilt first, to measure what that costs.
    """

    decode: DecodeConfig
    faces: FacesConfig
    windows: WindowsConfig
    limits: LimitsConfig
    needs: Needs
    device: str = "cpu"
    network: bool = False
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    corruption: str | None = None

    def message(self, *, finds_faces: bool) -> bytes:
        """The settings as the child reads them. finds_faces: whether it is to load the detector, or
        will read headers only and stay small."""
        return json.dumps(
            {
                "finds_faces": finds_faces,
                "memory_mb": self.limits.child_memory_mb,
                "decode": self.decode.model_dump(),
                "faces": self.faces.model_dump(),
                "windows": self.windows.model_dump(),
                "needs": self.needs.to_json(),
                "device": self.device,
                "storage_options": self.storage_options,
                "corruption": self.corruption,
            }
        ).encode()


class _Decoder:
    """The child with its settings: requests in, answers or a reason why there is none out."""

    def __init__(self, settings: FaceSettings, *, finds_faces: bool) -> None:
        self._message = settings.message(finds_faces=finds_faces)
        self.child = Child(_CHILD, offline=not settings.network)
        self._on_device = settings.device != "cpu"
        self._loads = False

    def ask(self, request: dict[str, Any], timeout_s: float) -> bytes | tuple[Reason, str]:
        self._start()
        try:
            # Twice the time: its threads may be two, and the clock on the wall decides anyhow.
            message = json.dumps(request | {"cpu_seconds": 2 * timeout_s})
            answer = self.child.ask(message.encode(), timeout_s)
            self._check_device(answer)
            return answer
        except ChildTimedOut as error:
            return "timeout", str(error)
        except ChildDied as error:
            return "decoder_crashed", f"the decoding process ended by {error}"

    def _start(self) -> None:
        """Starts the child if it does not run. One that dies before it has seen a video is no
        video's fault: it is started again, and after some times the job has to know."""
        for left in reversed(range(_STARTS)):
            if self.child.pid is not None and not self._loads:
                return
            try:
                if not self._loads:
                    self.load()
                answer = self.child.answer(_START_TIMEOUT_S)
                self._loads = False
            except ChildTimedOut:
                self._loads = False
                raise
            except ChildDied:
                self._loads = False
                if not left:
                    raise
                continue
            self._check_device(answer)
            if answer != b"ready":
                raise JobFailed(f"the face stage cannot start: {answer.decode()}")

    def _check_device(self, answer: bytes) -> None:
        if self._on_device and answer.startswith(DEVICE_FAILED):
            self.child.stop()
            raise device_failed(answer.removeprefix(DEVICE_FAILED).decode())

    def load(self) -> None:
        """Begins to load what it needs, and is waited for when there is something to ask."""
        self._loads = True
        self.child.send(self._message)


class SegmentPlanner:
    """Videos (schema.VIDEO_ROW) -> their segments (schema.SEGMENT_ROW), headers read by a child: a small one
    of its own, or another's."""

    def __init__(self, settings: FaceSettings, decoder: _Decoder | None = None) -> None:
        self.settings = settings
        self._decoder = decoder or _Decoder(settings, finds_faces=False)

    @property
    def decoder(self) -> Child:
        """The child process, for those who watch it."""
        return self._decoder.child

    def __call__(self, videos: pa.Table) -> pa.Table:
        rows = [row for video in videos.to_pylist() for row in self._segments(video)]
        return pa.Table.from_pylist(rows, SEGMENT_ROW)

    def _segments(self, video: dict[str, Any]) -> list[dict[str, Any]]:
        if video["missing"] is not None:
            return failed_video(video, video["missing"], f"{video['uri']} cannot be read")
        if video["pictures"]:
            return [pictures_row(video)]
        limit = self.settings.limits.segment_timeout_seconds
        answer = self._decoder.ask({"probe": video["signed_uri"] or video["uri"]}, limit)
        if isinstance(answer, tuple):
            return failed_video(video, *answer)
        told = json.loads(answer)
        if "failure" in told:
            failure = told["failure"]
            rows = failed_video(video, failure["reason"], failure["detail"])
        else:
            # Who is who can only be told where all of a video's tracks are at hand.
            whole = self.settings.faces.identity is not None
            info = VideoInfo(**told["info"])
            rows = segment_rows(video, info, self.settings.decode, whole=whole)
        if rows:
            rows[0] |= told["spent"]
        return rows


class FaceActor:
    """Segments (schema.SEGMENT_ROW) -> the same rows with their faces (schema.FACES_ROW).

    plans: it takes whole videos (schema.VIDEO_ROW) and finds their segments as well.
    """

    def __init__(self, settings: FaceSettings, *, plans: bool = False) -> None:
        self.settings = settings
        self._decoder = _Decoder(settings, finds_faces=True)
        self._planner = SegmentPlanner(settings, self._decoder) if plans else None
        with suppress(ChildDied):  # the first segment's start finds out why
            self._decoder.load()

    @property
    def decoder(self) -> Child:
        """The child process, for those who watch it."""
        return self._decoder.child

    def __call__(self, rows: pa.Table) -> pa.Table:
        segments = self._planner(rows) if self._planner else rows
        return pa.concat_tables(
            [FACES_ROW.empty_table(), *(self._found(row) for row in segments.to_pylist())]
        )

    def _found(self, segment: dict[str, Any]) -> pa.Table:
        if segment["failed"]:
            return _as_row(without_faces(segment))
        timeout_s = self._timeout(segment)
        try:
            answer = self._decoder.ask({"faces": _as_json(segment)}, timeout_s)
        except DeviceFailed as failed:
            raise in_hand(failed, [segment]) from failed.__cause__
        if isinstance(answer, tuple):
            return _as_row(without_faces(failed_segment(segment, *answer), timeout_s))
        parts = pa.ipc.open_stream(answer).read_all()
        try:
            return _whole(parts)
        except pa.ArrowException:  # a column holds two gigabytes
            crowded = too_crowded(segment, pc.sum(pc.list_value_length(parts["windows"])).as_py())
            return _as_row(without_faces(crowded, parts["face_seconds"][0].as_py()))

    def _timeout(self, segment: dict[str, Any]) -> float:
        limits = self.settings.limits
        end = min(segment["end_s"], segment["duration_s"] or self.settings.decode.segment_seconds)
        length = min(max(end - segment["start_s"], 0.0), _MAX_LONGEST_SEGMENT_S)
        return limits.segment_timeout_seconds + limits.timeout_per_video_second * length


def _as_json(segment: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no bytes: an open end goes as null, pictures as base64."""
    pictures = [
        picture | {"bytes": base64.b64encode(picture["bytes"]).decode()}
        if picture["bytes"] is not None
        else picture
        for picture in segment["pictures"] or ()
    ]
    end_s = None if math.isinf(segment["end_s"]) else segment["end_s"]
    return segment | {"end_s": end_s, "pictures": pictures}


def _whole(parts: pa.Table) -> pa.Table:
    """The row of which a child gave the windows in parts, the rest with the first."""
    if parts.num_rows == 1:
        return parts
    windows = pc.list_flatten(parts["windows"]).combine_chunks()
    place = parts.schema.get_field_index("windows")
    column = pa.ListArray.from_arrays(pa.array([0, len(windows)], pa.int32()), windows)
    return parts.slice(0, 1).set_column(place, parts.schema.field(place), column)


def _as_row(row: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([row], FACES_ROW)
