"""The child of a face actor: the only process that touches untrusted bytes.

Requests are JSON, answers Arrow (rows) or JSON; nothing is unpickled on either side. It dies with
its parent, and its address space is limited, so a file that eats memory ends this process alone.
"""

from __future__ import annotations

import base64
import ctypes
import io
import json
import math
import resource
import signal
import sys
import time
import zlib
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import av
import pyarrow as pa

from emolake.actors.device import DEVICE_FAILED, is_of_device, is_of_library, is_of_memory
from emolake.pipeline.config import DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.corpus.segments import failed_segment, too_crowded, without_faces
from emolake.pipeline.errors import DeviceFailed, VideoError, in_a_line
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.lake.schema import FACES_ROW
from emolake.pipeline.storage.files import Storage, as_os_error, is_local
from emolake.pipeline.storage.traffic import bytes_read_by_process, counted, ours
from emolake.pipeline.video.decode import Ending, Source, probe, sampled_frames
from emolake.pipeline.video.sound import read_sound
from emolake.pipeline.video.transcripts import read_subtitles, read_transcript

if TYPE_CHECKING:
    from emolake.pipeline.faces.mtcnn import Mtcnn
    from emolake.pipeline.faces.stage import FaceStage

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
_WINDOWS_A_PART = 256


def main() -> None:
    connection: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    die_with_parent()
    av.logging.set_level(None)
    settings = json.loads(connection.recv_bytes())
    limit = settings["memory_mb"] * 1024 * 1024
    # CUDA reserves far more addresses than it uses; there, what is really written counts.
    kind = resource.RLIMIT_AS if settings["device"] == "cpu" else resource.RLIMIT_DATA
    resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        worker = _Worker(settings)
    except Exception as error:
        blames = settings["device"] != "cpu" and is_of_device(error, starts=True)
        connection.send_bytes((DEVICE_FAILED if blames else b"") + in_a_line(error, 500).encode())
        return
    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        limit_cpu(request["cpu_seconds"])
        try:
            connection.send_bytes(worker.answer(request))
        except DeviceFailed as error:
            connection.send_bytes(DEVICE_FAILED + str(error).encode())
            return


class _Worker:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.decode = DecodeConfig(**settings["decode"])
        self.faces = FacesConfig(**settings["faces"])
        self.windows = WindowsConfig(**settings["windows"])
        self.needs = Needs.from_json(settings["needs"])
        self.device: str = settings["device"]
        self.storage = Storage(settings["storage_options"])
        self.corruption: str | None = settings["corruption"]
        # Loading torch takes seconds: at the start, and not out of the first segment's time.
        wanted = settings["finds_faces"] and self.needs.faces
        self._stage = self._face_stage() if wanted else None
        self._mtcnn: Mtcnn | None = None

    def answer(self, request: dict[str, Any]) -> bytes | memoryview:
        """{"probe": uri} -> JSON of `info` (a VideoInfo) or `failure` (reason and detail), and of
        `spent`; {"faces": segment} -> an Arrow stream of one row of schema.FACES_ROW, with
        its windows in parts."""
        probed = request.get("probe")
        spent = _Meter(probed or request["faces"]["uri"])
        if probed is not None:
            try:
                told = {"info": asdict(self._probe(probed))}
            except Exception as error:
                told = {"failure": reason_of(error)}
            return json.dumps(told | {"spent": spent()}).encode()
        row = self._find_faces(request["faces"])
        for name, value in spent().items():
            row[name] += value
        windows = len(row["windows"])
        try:
            return _as_arrow(row)
        except (MemoryError, pa.ArrowException):
            return _as_arrow(without_faces(too_crowded(row, windows), row["face_seconds"]))

    def _probe(self, uri: str) -> Any:
        return probe(self._source(uri))

    def _find_faces(self, segment: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        ending = Ending()
        start_s = segment["start_s"]
        end_s = math.inf if segment["end_s"] is None else segment["end_s"]
        segment["end_s"] = end_s
        try:
            found = self._faces(segment, start_s, end_s, ending)
            if not segment["pictures"]:
                found["sound"] = self._sound(_opened(segment), start_s, end_s)
                found |= self._cues(segment, start_s, end_s)
        except Exception as error:
            if self.device != "cpu" and is_of_device(error):
                raise DeviceFailed(in_a_line(error, 200)) from None
            told = reason_of(error)
            failed = failed_segment(segment, told["reason"], told["detail"])
            return without_faces(failed, time.monotonic() - started)
        if ending.truncated:
            found |= {"reason": "truncated", "detail": ending.detail}
        elif ending.damaged and not found.get("detail"):
            found["detail"] = f"{ending.damaged} of its pictures are damaged"
        return segment | found | {"face_seconds": time.monotonic() - started}

    def _faces(
        self, segment: dict[str, Any], start_s: float, end_s: float, ending: Ending
    ) -> dict[str, Any]:
        duration = segment["duration_s"] or math.inf
        if segment["pictures"] and self._stage is not None:
            return self._pictured(segment["pictures"], zlib.crc32(segment["uri"].encode()))
        if self._stage is None:  # no model of this run reads faces
            length = max(min(end_s, duration) - start_s, 0.0)
            span = length if math.isfinite(length) else 0.0
            return without_faces({}) | {"video_seconds": span}
        source = self._source(_opened(segment))
        frames = sampled_frames(source, self.decode, start_s, end_s, ending)
        found = self._stage(frames, start_s, end_s, duration)
        return {
            "tracks": found.tracks,
            "windows": found.windows,
            "n_dropped_tracks": found.n_dropped_tracks,
            "frames_seen": found.frames_seen,
            "video_seconds": found.seen_s,
        }

    def _pictured(self, given: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        """Pictures of one face each, as one window; spoilt first where that is to be measured."""
        from emolake.pipeline.evaluation.corruptions import BOX_ERROR, corrupted
        from emolake.pipeline.faces.encoding import decode_picture
        from emolake.pipeline.faces.mtcnn import Mtcnn
        from emolake.pipeline.faces.still import still_window

        if self._mtcnn is None:
            self._mtcnn = Mtcnn(device=self.device)
        pictures = [decode_picture(self._encoded(one), self.decode.max_pixels) for one in given]
        if self.corruption is not None:
            pictures = [corrupted(one, self.corruption, seed) for one in pictures]
        error = BOX_ERROR if self.corruption == "box_error" else 0.0
        window = still_window(pictures, self._mtcnn, self.needs, error, seed)
        return without_faces({}) | {"windows": [window], "frames_seen": len(pictures)}

    def _encoded(self, picture: dict[str, Any]) -> bytes:
        if picture["bytes"] is not None:
            return base64.b64decode(picture["bytes"])
        fs, path = self.storage.locate(picture["uri"])
        data: bytes = fs.cat_file(path)
        return data

    def _sound(self, uri: str, start_s: float, end_s: float) -> dict[str, Any] | None:
        if not self.needs.sound:
            return None
        sound = read_sound(self._source(uri), start_s, end_s)
        if sound is None:
            return None
        return {"start_s": sound.start_s, "samples": sound.samples.tobytes()}

    def _cues(self, segment: dict[str, Any], start_s: float, end_s: float) -> dict[str, Any]:
        """What is said in the segment. A transcript that cannot be read costs itself, and is told."""
        if not self.needs.transcript:
            return {"cues": None}
        cues, told = None, {}
        named = segment["transcript_uri"]
        try:
            # A file beside a presigned URL has another signature, which nobody gave us.
            if named or not segment["signed_uri"]:
                cues = read_transcript(segment["uri"], named, self.storage)
        except (OSError, ValueError) as error:
            told = _unread_transcript(error)
        try:
            if cues is None and not (named and told):
                cues = read_subtitles(self._source(_opened(segment)), start_s, end_s)
        except (OSError, ValueError) as error:
            told = _unread_transcript(error)
        inside = [cue for cue in cues or () if cue.start_s < end_s and cue.end_s > start_s]
        return told | {"cues": None if cues is None else [asdict(cue) for cue in inside]}

    def _face_stage(self) -> FaceStage:
        import cv2
        import torch

        from emolake.pipeline.faces.stage import FaceStage

        torch.set_num_threads(1)
        cv2.setNumThreads(1)  # it heeds no OMP_NUM_THREADS, and YuNet runs in it
        return FaceStage(
            self.faces,
            self.windows,
            self.needs,
            self.decode.sample_fps,
            self.device,
        )

    def _source(self, uri: str) -> Source:
        fs, path = self.storage.locate(uri)
        if is_local(fs):
            return path
        return counted(fs.open(path, "rb"))


class _Meter:
    """What is read of one video from here on: by the kernel's count where it is a local file, which
    FFmpeg opens by itself, else at our own door."""

    def __init__(self, uri: str) -> None:
        self._local = "://" not in uri
        self._files = bytes_read_by_process()
        self._before = ours()

    def __call__(self) -> dict[str, int]:
        spent = ours().since(self._before)
        if self._local:
            spent["bytes_read"] = bytes_read_by_process() - self._files
        return {"bytes_read": spent["bytes_read"], "requests": spent["requests"]}


def _unread_transcript(error: Exception) -> dict[str, str]:
    return {"detail": f"its transcript cannot be read: {in_a_line(error, 200)}"}


def _opened(segment: dict[str, Any]) -> str:
    """What a video is opened by."""
    opened: str = segment["signed_uri"] or segment["uri"]
    return opened


def reason_of(error: Exception) -> dict[str, str]:
    """reason and detail of whatever went wrong with a video."""
    error = as_os_error(error)
    words = in_a_line(error, 300)
    if isinstance(error, VideoError):
        return {"reason": error.reason, "detail": in_a_line(error.detail)}
    if isinstance(error, FileNotFoundError):
        return {"reason": "not_found", "detail": words}
    of_memory = is_of_library(error) and is_of_memory(words)
    if isinstance(error, MemoryError) or of_memory or "allocate memory" in words:
        return {"reason": "out_of_memory", "detail": words or "memory ran out"}
    if isinstance(error, OSError):
        return {"reason": "storage_error", "detail": words}
    return {"reason": "decode_error", "detail": f"{type(error).__name__}: {words}"}


def _as_arrow(row: dict[str, Any]) -> memoryview:
    """The row, as one more for each part of its windows: they are let go as they are written, so that
    those of a crowd are not held twice."""
    windows, sink = row["windows"], io.BytesIO()
    with pa.ipc.new_stream(sink, FACES_ROW) as writer:
        for k in range(max(1, math.ceil(len(windows) / _WINDOWS_A_PART))):
            part = (without_faces(row) if k else row) | {"windows": windows[:_WINDOWS_A_PART]}
            del windows[:_WINDOWS_A_PART]
            writer.write_table(pa.Table.from_pylist([part], FACES_ROW))
    return sink.getbuffer()


def limit_cpu(seconds: float) -> None:
    """So much processor time from now on; the supervisor's clock alone would not stop a child whose
    supervisor hangs."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
