"""A video written anew: each frame as somebody draws on it, sound kept; one streaming pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError
from av.filter import Graph

from emolake.pipeline.errors import UserError, VideoError
from emolake.pipeline.video.decode import Clock, Source, clock_start, open_video, seek
from emolake.pipeline.video.frame import Frame
from emolake.pipeline.video.picture import Pictures

_AAC_FRAME = 1024  # samples
_EPSILON = 1e-6  # seconds


def transcode(
    source: Source, target: Path, drawn: Callable[[Frame, float], Frame], *, sound: bool = True
) -> int:
    """Writes H.264, every frame at its own time; the number of frames. drawn: a frame (H, W, 3) RGB and its
    time in seconds -> what is written. Sound is copied where the target's container takes it, else encoded
    as AAC. UserError where the target cannot be written."""
    with open_video(source) as (container, video), _written(target) as out:
        return _Transcoding(container, video, out, drawn, sound=sound).run()


def excerpt(
    source: Source,
    target: Path,
    drawn: Callable[[Frame, float], Frame],
    span: tuple[float, float],
    width: int,
) -> float:
    """The same of a stretch, deinterlaced, at most so wide, as what every browser plays; the time of its
    first frame, which is 0 in the target. VideoError where the source has no frame there."""
    with open_video(source) as (container, video), _written(target) as out:
        if span[0] > 0:
            seek(container, video, span[0] + clock_start(container))
        excerpted = _Transcoding(container, video, out, drawn, span, width)
        excerpted.run()
        if excerpted.first_s is None:
            raise VideoError("truncated", f"it has no frame from {span[0]:.1f} s on")
        return excerpted.first_s


class _Transcoding:
    def __init__(
        self,
        container: Any,
        video: Any,
        out: Any,
        drawn: Callable[[Frame, float], Frame],
        span: tuple[float, float] | None = None,
        width: int | None = None,
        *,
        sound: bool = True,
    ) -> None:
        self._container, self._video, self._out, self._drawn = container, video, out, drawn
        self._span, self._width = span, width
        self._clock = Clock(container, video, sought=span is not None and span[0] > 0)
        self._origin = clock_start(container)
        self._last_pts: int | None = None
        self._pictures = Pictures(video)
        self._stream: Any = None
        self._deinterlacer: Graph | None = None
        heard = list(container.streams.audio[:1]) if sound else []
        self._sound = _Sound(out, heard, whole=span is None)
        self.first_s: float | None = None

    def run(self) -> int:
        count = 0
        early: list[Any] = []  # sound before the first frame: all streams come before any packet
        for packet in self._container.demux([self._video, *self._sound.source]):
            if packet.stream.type == "audio":
                if self._stream is None:
                    early.append(packet)
                else:
                    self._sound.add(packet)
                continue
            for frame in frames_of(packet):
                time_s = self._clock(frame)
                if self._span is not None and time_s >= self._span[1]:
                    return self._finished(count)
                if self._span is not None and time_s < self._span[0] - _EPSILON:
                    continue
                if frame.pts is None:
                    frame.pts = round((time_s + self._origin) / frame.time_base)
                for whole in self._progressive(frame):
                    count += self._add(whole, early)
        return self._finished(count)

    def _add(self, frame: Any, early: list[Any]) -> int:
        time_s = frame.time - self._origin
        picture = self._drawn(self._pictures.rgb(frame, self._width), time_s)
        if self._stream is None:
            self._stream = _video_stream(self._out, picture, frame.time_base)
            if self._span is not None:
                self.first_s = time_s
                self._sound.begins_s = frame.time
            for sounding in early:
                self._sound.add(sounding)
        drawn = av.VideoFrame.from_ndarray(picture, format="rgb24")
        drawn.pts, drawn.time_base = frame.pts, frame.time_base
        if self.first_s is not None:
            drawn.pts -= round(self._sound.begins_s / frame.time_base)
        if self._last_pts is not None and drawn.pts <= self._last_pts:
            # Of joined files the clock steps back, which containers refuse.
            drawn.pts = self._last_pts + 1
        self._last_pts = drawn.pts
        self._out.mux(self._stream.encode(drawn))
        return 1

    def _finished(self, count: int) -> int:
        if self._stream is not None:
            self._out.mux(self._stream.encode())
            self._sound.finish()
        return count

    def _progressive(self, frame: Any) -> Iterator[Any]:
        if self._span is None or not (frame.interlaced_frame or self._deinterlacer):
            yield frame
            return
        if self._deinterlacer is None:
            graph = Graph()
            graph.link_nodes(
                graph.add_buffer(template=self._video), graph.add("yadif"), graph.add("buffersink")
            ).configure()
            self._deinterlacer = graph
        self._deinterlacer.vpush(frame)
        try:
            while True:
                yield self._deinterlacer.vpull()
        except (BlockingIOError, EOFError):  # it wants the next one first
            return


@contextmanager
def _written(target: Path) -> Iterator[Any]:
    try:
        target.open("wb").close()
        out = av.open(
            str(target), "w", options=_MOVFLAGS if target.suffix in (".mp4", ".mov") else {}
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--video {target} cannot be written: {error}") from None
    with out:
        if not {"h264", "aac"} <= out.supported_codecs:
            target.unlink()
            raise UserError(
                f"--video {target} cannot hold H.264 and AAC; name a .mp4, .mov or .mkv"
            )
        yield out


_MOVFLAGS = {"movflags": "faststart"}
"""A player begins before it has all of it."""


def frames_of(packet: Any) -> list[Any]:
    """A packet's frames; none where it is damaged."""
    try:
        return list(packet.decode())
    except FFmpegError:
        return []


def _video_stream(out: Any, picture: Frame, base: Fraction) -> Any:
    stream = out.add_stream("libx264", rate=30, options={"crf": "20", "preset": "veryfast"})
    height, width = picture.shape[:2]
    stream.width, stream.height = width - width % 2, height - height % 2
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = base
    return stream


class _Sound:
    """At most one sound stream of the source, copied or encoded into the target. whole: all of it; else from
    `begins_s` of the source's clock on, which is 0 in the target, and always encoded."""

    def __init__(self, out: Any, source: list[Any], *, whole: bool) -> None:
        self._out = out
        self._whole = whole
        self.begins_s = 0.0
        self.source = source
        self._stream: Any = None
        self._copies = False
        for stream in self.source:
            context = stream.codec_context
            self._copies = whole and context.codec.canonical_name in out.supported_codecs
            if self._copies:
                self._stream = out.add_stream_from_template(stream)
            else:
                self._stream = out.add_stream("aac", rate=context.sample_rate)
                self._stream.layout = context.layout
                self._resampler = av.AudioResampler(
                    "fltp", context.layout, context.sample_rate, frame_size=_AAC_FRAME
                )

    def add(self, packet: Any) -> None:
        if self._copies and packet.dts is not None:
            packet.stream = self._stream
            self._out.mux(packet)
        elif not self._copies:
            for frame in frames_of(packet):
                if self._whole:
                    self._encode(frame)
                elif frame.time is not None and frame.time >= self.begins_s:
                    frame.pts -= round(self.begins_s / frame.time_base)
                    self._encode(frame)

    def finish(self) -> None:
        if self._stream is not None and not self._copies:
            self._encode(None)
            self._out.mux(self._stream.encode())

    def _encode(self, frame: Any) -> None:
        """A frame, or what is left where there is none any more, in the encoder's own lengths."""
        for part in self._resampler.resample(frame):
            self._out.mux(self._stream.encode(part))
