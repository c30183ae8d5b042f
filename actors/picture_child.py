"""The child of a viewer: what people look at is decoded here, where a poisoned file ends one process alone.

Requests are JSON. Answers are JSON, or the bytes of a JPEG, which begin otherwise.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from emolake.actors.face_child import die_with_parent, limit_cpu, reason_of
from emolake.pipeline.errors import VideoError
from emolake.pipeline.presentation.blur import hidden
from emolake.pipeline.storage.files import Storage, is_local
from emolake.pipeline.video.decode import Clock, Source, clock_start, open_video, seek
from emolake.pipeline.video.frame import Frame
from emolake.pipeline.video.picture import Pictures
from emolake.pipeline.video.transcode import excerpt, frames_of

_QUALITY = 82  # of a JPEG
_CODECS = {"h264": ("mov", "matroska"), "vp8": ("matroska",), "vp9": ("mov", "matroska")}
_CODECS["av1"] = _CODECS["vp9"]
"""What browsers play, and in which of FFmpeg's containers (WebM is a Matroska)."""


def main() -> None:
    connection: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    die_with_parent()
    av.logging.set_level(None)
    settings = json.loads(connection.recv_bytes())
    limit = settings["memory_mb"] * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    storage = Storage(settings["storage_options"])
    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        limit_cpu(request["cpu_seconds"])
        try:
            answer = _DOES[request["do"]](_opened(storage, request["uri"]), request)
        except Exception as error:
            answer = {"failure": reason_of(error)}
        connection.send_bytes(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


def _opened(storage: Storage, uri: str) -> Source:
    fs, path = storage.locate(uri)
    source: Source = path if is_local(fs) else fs.open(path, "rb")
    return source


def _look(source: Source, _: dict[str, Any]) -> dict[str, Any]:
    """Whether a browser can play a file as it is; remade: why not."""
    with open_video(source) as (container, video):
        codec = video.codec_context.codec.canonical_name
        kinds = container.format.name.split(",")
        if not set(kinds) & set(_CODECS.get(codec, ())):
            return {"remade": f"{codec} in {kinds[0]} is nothing that browsers play"}
        if video.codec_context.pix_fmt not in ("yuv420p", "yuvj420p"):
            return {"remade": f"its pictures are {video.codec_context.pix_fmt}"}
        for packet in container.demux(video):
            for frame in frames_of(packet):
                return {"remade": "it is interlaced" if frame.interlaced_frame else None}
        return {"remade": "no frame of it can be decoded"}


def _still(source: Source, request: dict[str, Any]) -> bytes:
    """One frame, or the part of it around a box, as a JPEG."""
    with open_video(source) as (container, video):
        sought = request["time_s"] > 1
        pictures, clock = Pictures(video), Clock(container, video, sought=sought)
        if sought:
            seek(container, video, request["time_s"] + clock_start(container))
        last, time_s = None, 0.0
        for packet in container.demux(video):
            for frame in frames_of(packet):
                if math.isinf(here := clock(frame)):
                    continue
                last, time_s = frame, here
                if time_s >= request["time_s"] - 1e-3:
                    return _jpeg(pictures.rgb(frame), time_s, request)
        if last is None:
            raise VideoError("decode_error", "no frame of it can be decoded")
        return _jpeg(pictures.rgb(last), time_s, request)


def _jpeg(picture: Frame, time_s: float, request: dict[str, Any]) -> bytes:
    picture = hidden(picture, time_s, request["blur"])
    if request["box"] is not None:
        picture = _around(picture, request["box"])
    height, width = picture.shape[:2]
    if width > request["width"]:
        size = (request["width"], max(round(height * request["width"] / width), 1))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    return bytes(data)


def _around(picture: Frame, box: list[float]) -> Frame:
    """The face and as much again on each side, 4 to 3 where the frame has it."""
    height, width = picture.shape[:2]
    x, y = (box[0] + box[2]) / 2 * width, (box[1] + box[3]) / 2 * height
    half = max((box[3] - box[1]) * height, (box[2] - box[0]) * width * 0.75, 12.0)
    across = half * 4 / 3
    left, right = max(round(x - across), 0), min(round(x + across), width)
    top, bottom = max(round(y - half), 0), min(round(y + half), height)
    return picture[top:bottom, left:right] if right > left and bottom > top else picture


def _remake(source: Source, request: dict[str, Any]) -> dict[str, Any]:
    """A stretch as a file that browsers play; from: the time of its first frame."""

    def drawn(picture: Frame, time_s: float) -> Frame:
        return hidden(picture, time_s, request["blur"])

    span = (request["start_s"], request["end_s"])
    begins = excerpt(source, Path(request["target"]), drawn, span, request["width"])
    return {"from": begins}


_DOES = {"look": _look, "still": _still, "remake": _remake}


if __name__ == "__main__":
    main()
