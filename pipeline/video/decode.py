"""Video bytes -> timed frames: sampling by presentation time, segments, honest ends.

Two backends give the same frames: PyAV streams any file object with bounded memory; decord (through
its maintained fork `decord2`) reads local files, and remote ones whole into memory.

Sampling: time is cut into cells of 1 / sample_fps seconds from the video's start, and the first
frame of each cell is taken. A segment owns whole cells, so a boundary loses and doubles no frame.
Packets tell their presentation time before they are decoded, so PyAV leaves out the frames that
are no samples and that no other frame refers to: in H.264 with B-frames about half of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import cv2
import numpy as np
from av.codec.hwaccel import HWAccel
from av.error import EOFError as AvEOFError
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from emolake.pipeline.config import DecodeConfig
from emolake.pipeline.errors import Reason, VideoError
from emolake.pipeline.video.frame import Frame, TimedFrame
from emolake.pipeline.video.picture import Pictures, is_mirrored

Source = str | IO[bytes]
"""A local path, or a seekable binary file."""

_SEEKS_BACK_S = (0.0, 2.0, 8.0, 32.0, math.inf)
_GIVES_HALVES = frozenset({"mpeg4", "h263", "flv1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"})
"""Codecs whose decoders give pictures before a keyframe too, out of nothing and what has changed since."""
_WITHOUT_INDEX = ("mpegts", "mpeg")
_EPSILON = 1e-6  # seconds; timestamps are rationals, cells are floats
_TRUNCATION_SLACK_S = 0.5  # headers often promise a few frames more than there are
_MOST_PACKETS_AHEAD = 64  # read ahead of the decoder; reordering in real streams spans up to 16


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its video. duration_s: of live recordings, whose headers have none, as
    their packets tell; None where those have no times either."""

    duration_s: float | None
    fps: float | None
    width: int
    height: int
    codec: str


@dataclass
class Ending:
    """How a segment's decoding ended, filled in as its frames are read.

    truncated: the file stops before its header's end; detail: why, in words; damaged: how many pictures the
    decoder gave that are not whole, as it says.
    """

    truncated: bool = False
    detail: str | None = None
    damaged: int = 0
    last_s: float | None = None


def probe(source: Source) -> VideoInfo:
    """Reads the header. VideoError: not_a_video, truncated, no_video_stream, decode_error."""
    with open_video(source) as (container, stream):
        duration = _duration(container, stream)
        rate = stream.average_rate or stream.guessed_rate
        width, height = stream.codec_context.width, stream.codec_context.height
        pictures = Pictures(stream)
        first = next((f for f in _decode(container, stream) if isinstance(f, VideoFrame)), None)
        if first is not None:
            shown = pictures.timed(first, 0.0)
            width, height = shown.width, shown.height
        if duration is None:
            duration = _end_of_packets(container, stream)
        return VideoInfo(
            duration_s=duration,
            fps=float(rate) if rate else None,
            width=width,
            height=height,
            codec=stream.codec_context.name,
        )


def segment_spans(duration_s: float | None, config: DecodeConfig) -> list[tuple[float, float]]:
    """[start, end) of each segment, whole sampling cells; the last is open-ended, since headers can
    be wrong. A video of unknown length is one segment."""
    cells = math.ceil(config.segment_seconds * config.sample_fps - _EPSILON)
    length = cells / config.sample_fps
    count = 1
    if duration_s is not None and math.isfinite(duration_s):
        count = max(1, math.ceil(duration_s / length - _EPSILON))
    spans = [(k * length, (k + 1) * length) for k in range(count)]
    return [*spans[:-1], (spans[-1][0], math.inf)]


def sampled_frames(
    source: Source, config: DecodeConfig, start_s: float, end_s: float, ending: Ending
) -> Iterator[TimedFrame]:
    """The sampled frames of [start_s, end_s); how it ended stands in `ending` afterwards.

    Damaged packets are skipped while others still decode. VideoError where no frame can be had from
    a file that should have some.
    """
    first = math.ceil(start_s * config.sample_fps - _EPSILON)
    end = math.inf if math.isinf(end_s) else math.ceil(end_s * config.sample_fps - _EPSILON)
    backend = _pyav_frames if config.backend == "pyav" else _decord_frames
    frames = backend(source, config, first / config.sample_fps, end / config.sample_fps, ending)
    last = first - 1
    for frame in frames:
        cell = math.floor(frame.time_s * config.sample_fps + _EPSILON)
        if last < cell < end:
            last = cell
            yield frame


def _pyav_frames(
    source: Source, config: DecodeConfig, start_s: float, end_s: float, ending: Ending
) -> Iterator[TimedFrame]:
    with open_video(source, config.hwaccel) as (container, stream):
        context = stream.codec_context
        _check_size(context.width, context.height, config.max_pixels)
        context.thread_count = config.threads
        context.thread_type = "AUTO"
        if config.fast:
            context.options = {"skip_loop_filter": "all"}
        origin = clock_start(container)
        duration = _duration(container, stream)
        problems, seen, finished = 0, False, False
        clock = Clock(container, stream)
        tick = float(stream.time_base or 0)
        pictures = Pictures(stream)

        def cell_of(pts: int) -> int:
            return math.floor((pts * tick - origin) * config.sample_fps + _EPSILON)

        for decoded in _decoded_from(container, stream, start_s, origin, cell_of):
            if isinstance(decoded, str):
                problems += 1
                ending.detail = decoded
                continue
            _check_size(decoded.width, decoded.height, config.max_pixels)
            time_s = clock(decoded)
            seen = True
            ending.last_s = time_s
            if time_s >= end_s - _EPSILON:
                finished = True
                break
            if time_s < start_s - _EPSILON:
                pictures.pass_over(decoded)
            else:
                ending.damaged += decoded.is_corrupt
                shown = pictures.timed(decoded, max(time_s, 0.0))
                _check_size(shown.width, shown.height, config.max_pixels)
                yield shown
        if not seen and start_s == 0:
            reason: Reason = "truncated" if _cut_off(source) else "decode_error"
            raise VideoError(reason, ending.detail or "no frame could be decoded")
        if not finished:
            _note_truncation(ending, duration, problems, _cut_off(source))


def _decoded_from(
    container: Any,
    stream: VideoStream,
    start_s: float,
    origin: float,
    cell_of: Callable[[int], int],
) -> Iterator[VideoFrame | str]:
    """As `_decode`, from a frame at or before start_s on where there is one. Some formats (MPEG-TS, MPEG-PS)
    have no index, and their seek lands between keyframes: where the first frame comes late, it seeks again,
    further back."""
    if not (start_s > 0 and stream.time_base) or container.start_time is None:
        yield from _decode(container, stream, cell_of)
        return
    target_s = start_s + origin
    for back_s in _SEEKS_BACK_S:
        place_s = max(start_s - back_s, 0.0)
        _to_keyframe(container, stream, place_s + origin)
        frames = _decode(container, stream, cell_of)
        if not place_s:
            yield from frames
            return
        problems, first = _to_whole_frame(stream, frames, target_s)
        if first is not None and _is_whole(stream, first, target_s):
            yield from problems
            yield first
            yield from frames
            return


def _to_whole_frame(
    stream: VideoStream, frames: Iterator[VideoFrame | str], target_s: float
) -> tuple[list[str], VideoFrame | None]:
    """Goes on to the first frame from which on all are whole and tell their times, or which comes too late;
    and the errors that were stepped over."""
    problems = []
    for decoded in frames:
        if isinstance(decoded, str):
            problems.append(decoded)
        elif (told := decoded.time) is not None and (
            told > target_s or _is_whole(stream, decoded, target_s)
        ):
            return problems, decoded
    return problems, None


def _is_whole(stream: VideoStream, frame: VideoFrame, target_s: float) -> bool:
    """Whether a frame tells a time, at or before the target, and its decoder had all of it."""
    whole = frame.key_frame or stream.codec_context.codec.canonical_name not in _GIVES_HALVES
    return whole and frame.time is not None and frame.time <= target_s + _EPSILON


def _decode(
    container: Any, stream: VideoStream, cell_of: Callable[[int], int] | None = None
) -> Iterator[VideoFrame | str]:
    """Frames in order; a string for each error that was stepped over.

    cell_of: sampling cell of a presentation time. With it, frames that are not the first of their
    cell may be left out, until an error makes every frame worth having.
    """
    packets = container.demux(stream)
    marked = _samples_marked(packets, cell_of) if cell_of else ((p, True) for p in packets)
    damaged = False
    while True:
        try:
            packet, wanted = next(marked)
        except (StopIteration, AvEOFError):
            return
        except FFmpegError as error:
            # A broken container cannot be read past this point.
            yield _words(error)
            return
        if cell_of:
            stream.codec_context.skip_frame = "DEFAULT" if wanted or damaged else "NONREF"
        try:
            yield from packet.decode()
        except AvEOFError:
            return
        except FFmpegError as error:
            damaged = True
            yield _words(error)


def _samples_marked(
    packets: Iterator[Packet[Any]], cell_of: Callable[[int], int]
) -> Iterator[tuple[Packet[Any], bool]]:
    """Each packet and whether it holds the first frame of its cell, or may do so.

    Packets come in decoding order. A frame shown before one at time t is decoded before t, so a
    packet is judged once a later one's decoding time has reached its presentation time.
    """
    ahead: deque[Packet[Any]] = deque()
    first_of: dict[int, int] = {}

    def judged() -> tuple[Packet[Any], bool]:
        packet = ahead.popleft()
        if packet.pts is None or packet.dts is None or packet.is_discard:
            return packet, True
        cell = cell_of(packet.pts)
        for old in [c for c in first_of if c < cell - _MOST_PACKETS_AHEAD]:
            del first_of[old]
        return packet, first_of.get(cell, packet.pts) == packet.pts

    failure: FFmpegError | None = None
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except FFmpegError as error:
            failure = error
            break
        ahead.append(packet)
        if packet.pts is None or packet.dts is None:
            while ahead:
                yield judged()
            continue
        if not packet.is_discard:
            cell = cell_of(packet.pts)
            first_of[cell] = min(first_of.get(cell, packet.pts), packet.pts)
        while ahead and ((ahead[0].pts or 0) <= packet.dts or len(ahead) > _MOST_PACKETS_AHEAD):
            yield judged()
    while ahead:
        yield judged()
    if failure is not None:
        raise failure


def _note_truncation(ending: Ending, duration: float | None, problems: int, cut_off: bool) -> None:
    missing = 0.0
    if duration is not None:
        missing = duration - (ending.last_s if ending.last_s is not None else 0.0)
    if missing > _TRUNCATION_SLACK_S and (cut_off or problems or missing > 0.1 * (duration or 0)):
        ending.truncated = True
        reached = (
            "no frame" if ending.last_s is None else f"the last frame at {ending.last_s:.2f} s"
        )
        ending.detail = f"the header promises {duration:.2f} s; {reached}"
    elif cut_off:
        ending.truncated = True
        ending.detail = "the file ends before its container does"


def seek(container: Any, stream: VideoStream, target_s: float) -> None:
    """To where the next frame is at or before the target, a time of the file's own clock, if any is."""
    if container.start_time is None:
        return  # nothing in it tells a time: its frames are counted from the first
    begins_s = clock_start(container)
    for back_s in _SEEKS_BACK_S:
        place_s = max(target_s - back_s, begins_s)
        _to_keyframe(container, stream, place_s)
        if place_s == begins_s:
            break
        _, first = _to_whole_frame(stream, _decode(container, stream), target_s)
        if first is not None and _is_whole(stream, first, target_s):
            break
    _to_keyframe(container, stream, place_s)


def _to_keyframe(container: Any, stream: VideoStream, target_s: float) -> None:
    """To the keyframe at or before the target, in formats that have an index; a file that cannot seek is read
    from its start."""
    try:
        if container.format.name in _WITHOUT_INDEX and target_s <= clock_start(container):
            # By time, it would end up behind the first keyframe.
            container.seek(0, unsupported_byte_offset=True)
            return
        container.seek(int(target_s / (stream.time_base or 1)), stream=stream, backward=True)
    except FFmpegError:
        container.seek(0)


def _decord_frames(
    source: Source, config: DecodeConfig, start_s: float, end_s: float, ending: Ending
) -> Iterator[TimedFrame]:
    try:
        import decord
    except ImportError:
        raise VideoError("decode_error", "decord is not installed; pip install decord2") from None
    info = probe(source)
    _check_size(info.width, info.height, config.max_pixels)
    with open_video(source) as (container, stream):
        origin = clock_start(container)
        first = next((f for f in _decode(container, stream) if isinstance(f, VideoFrame)), None)
    if first is not None and is_mirrored(first):  # decord turns pictures and does not mirror them
        yield from _pyav_frames(source, config, start_s, end_s, ending)
        return
    if not isinstance(source, str):
        source.seek(0)
    try:
        reader = decord.VideoReader(source, num_threads=config.threads)
        times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0] - origin
        cell = -1
        for index in np.argsort(times, kind="stable"):
            time_s = max(float(times[index]), 0.0)
            ending.last_s = time_s
            if time_s >= end_s - _EPSILON:
                return
            here = math.floor(time_s * config.sample_fps + _EPSILON)
            if time_s >= start_s - _EPSILON and here != cell:
                cell = here
                size = (info.width, info.height)
                yield _from_array(reader[int(index)].asnumpy(), time_s, size)
    except decord.DECORDError as error:
        # decord cannot step over what it fails on, and a gap must not pass for an empty stretch.
        raise VideoError("decode_error", f"decord: {' '.join(str(error).split())[:200]}") from None
    _note_truncation(ending, info.duration_s, 0, _cut_off(source))


def _from_array(upright: Frame, time_s: float, size: tuple[int, int]) -> TimedFrame:
    """A frame of decord's, which turns pictures upright itself and knows neither fields nor HDR."""

    def render(width: int, height: int) -> Frame:
        if (height, width) == upright.shape[:2]:
            return upright
        scaled = cv2.resize(upright, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(scaled, np.uint8)

    return TimedFrame(time_s, *size, render)


@contextmanager
def open_video(source: Source, hwaccel: str | None = None) -> Iterator[tuple[Any, VideoStream]]:
    """The container and its video stream; cover art and attached pictures are no video.

    VideoError: not_found, not_a_video, truncated, no_video_stream, decode_error.
    """
    try:
        container = container_of(source, hwaccel)
    except (InvalidDataError, AvEOFError) as error:
        if _cut_off(source):
            raise VideoError(
                "truncated", f"the file ends before its index: {_words(error)}"
            ) from None
        raise VideoError("not_a_video", _words(error)) from None
    except FileNotFoundError:
        raise VideoError("not_found", f"{source} does not exist") from None
    except FFmpegError as error:
        raise VideoError("not_a_video", _words(error)) from None
    with container:
        streams = [s for s in container.streams.video if not _is_picture(s)]
        if not streams:
            kinds = ", ".join(sorted({s.type or "unknown" for s in container.streams})) or "no"
            raise VideoError("no_video_stream", f"the file has {kinds} streams only")
        stream = streams[0]
        if not stream.codec_context or not stream.codec_context.width:
            raise VideoError("decode_error", "the video stream has no known codec or no size")
        yield container, stream


def container_of(source: Source, hwaccel: str | None = None) -> Any:
    """Opened with the hardware decoder, or without where the machine or the file has no use of it."""
    device = HWAccel(hwaccel, allow_software_fallback=True) if hwaccel else None
    if not isinstance(source, str):
        source.seek(0)
    try:
        return av.open(source, mode="r", metadata_errors="ignore", hwaccel=device)
    except FFmpegError:
        if device is None:
            raise
    return container_of(source)


def _is_picture(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


class Clock:
    """Tells each frame of a stream, in order, its time in seconds from the video's start. One that tells none
    (raw streams) comes a step after the one before it. sought: the stream is not read from its start, and
    frames before the first that tells a time are from any time before what was sought: -inf."""

    def __init__(self, container: Any, stream: VideoStream, *, sought: bool = False) -> None:
        self._origin = clock_start(container)
        self._step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        somewhere = sought and container.start_time is not None
        self._last = -math.inf if somewhere else -self._step

    def __call__(self, frame: VideoFrame) -> float:
        told = frame.time
        self._last = self._last + self._step if told is None else told - self._origin
        return self._last


def clock_start(container: Any) -> float:
    """Time of the file's start in its own clock, seconds (MPEG-TS starts anywhere)."""
    return float(container.start_time or 0) / av.time_base


def _duration(container: Any, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        start = float((stream.start_time or 0) * stream.time_base) - clock_start(container)
        return float(stream.duration * stream.time_base) + max(start, 0.0)
    if container.duration:
        return float(Fraction(container.duration, av.time_base))
    return None


def _end_of_packets(container: Any, stream: VideoStream) -> float | None:
    """Reads on to the file's end without decoding."""
    last: Fraction | None = None
    try:
        for packet in container.demux(stream):
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                last = end if last is None else max(last, end)
    except FFmpegError:
        pass  # damaged there: what came before has an end too
    return None if last is None else max(float(last) - clock_start(container), 0.0) or None


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise VideoError("too_large", f"frames of {width}x{height} exceed {most} pixels")


def _cut_off(source: Source) -> bool:
    """Whether an ISO-BMFF file (mp4, mov) ends inside one of its top-level boxes.

    ISO/IEC 14496-12, 4.2: size (u32, big endian), type, and a u64 size where the first is 1; 0
    reaches to the end of the file.
    """
    with Path(source).open("rb") if isinstance(source, str) else nullcontext(source) as stream:
        length = stream.seek(0, 2)
        at, boxes = 0, 0
        while at + 8 <= length:
            stream.seek(at)
            head = stream.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if boxes == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return False
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size == 0:
                return False
            if size < 8:
                return False
            at, boxes = at + size, boxes + 1
        return boxes > 0 and at > length


def _words(error: FFmpegError) -> str:
    return " ".join((error.strerror or str(error)).split())[:300]
