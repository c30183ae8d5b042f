"""The video with what was found drawn in: one streaming pass, sound kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
from av.error import FFmpegError

from emolake.pipeline.errors import UserError
from emolake.pipeline.presentation.export.story import Face, Story
from emolake.pipeline.presentation.palette import rgb
from emolake.pipeline.video.decode import Source, clock_start, open_video, upright
from emolake.pipeline.video.frame import Frame

_STRIP = 0.05  # height of the timeline strip, as a part of the frame's
_BARS = 3  # labels shown beside a face
_AAC_FRAME = 1024  # samples
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_video(story: Story, source: Source, target: Path) -> int:
    """Writes H.264, every frame at its own time; the number of frames. Sound is copied where the
    target's container takes it, else encoded as AAC. UserError where the target cannot be written."""
    count = 0
    with open_video(source) as (container, video), _written(target) as out:
        stream: Any = None
        sound = _Sound(out, container)
        early: list[Any] = []  # sound before the first frame: all streams come before any packet
        for packet in container.demux([video, *sound.source]):
            if packet.stream.type == "audio":
                if stream is None:
                    early.append(packet)
                else:
                    sound.add(packet)
                continue
            for frame in _frames(packet):
                picture = upright(frame)
                if stream is None:
                    stream = _video_stream(out, picture, frame.time_base)
                    for sounding in early:
                        sound.add(sounding)
                time_s = (frame.time or 0.0) - clock_start(container)
                drawn = av.VideoFrame.from_ndarray(drawn_on(picture, story, time_s), format="rgb24")
                drawn.pts, drawn.time_base = frame.pts, frame.time_base
                out.mux(stream.encode(drawn))
                count += 1
        if stream is not None:
            out.mux(stream.encode())
            sound.finish()
    return count


def write_stills(story: Story, source: Source, folder: Path) -> int:
    """A PNG at the middle of each window, named by time and face; the number of files."""
    wanted = sorted(
        ((w["start_s"] + w["end_s"]) / 2, face.name) for face in story.faces for w in face.windows
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--frames {folder} cannot be made: {error.strerror}") from None
    made = 0
    with open_video(source) as (container, video):
        for packet in container.demux(video):
            for frame in _frames(packet):
                time_s = (frame.time or 0.0) - clock_start(container)
                while made < len(wanted) and wanted[made][0] <= time_s:
                    middle, name = wanted[made]
                    path = folder / f"{middle:09.3f}_{name.replace(' ', '')}.png"
                    drawn = drawn_on(upright(frame), story, time_s)
                    cv2.imwrite(str(path), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
                    made += 1
                if made == len(wanted):
                    return made
    return made


@contextmanager
def _written(target: Path) -> Iterator[Any]:
    try:
        target.open("wb").close()
        out = av.open(str(target), "w")
    except (OSError, ValueError) as error:
        raise UserError(f"--video {target} cannot be written: {error}") from None
    with out:
        if not {"h264", "aac"} <= out.supported_codecs:
            target.unlink()
            raise UserError(
                f"--video {target} cannot hold H.264 and AAC; name a .mp4, .mov or .mkv"
            )
        yield out


def _frames(packet: Any) -> list[Any]:
    """A packet's frames; none where it is damaged."""
    try:
        return list(packet.decode())
    except FFmpegError:
        return []


def drawn_on(picture: Frame, story: Story, time_s: float) -> Frame:
    """A copy of a frame (H, W, 3) with boxes, scores and the timeline strip at a time."""
    canvas = picture.copy()
    unit = max(canvas.shape[0] / 360, 0.5)
    for face in story.faces:
        _draw_face(canvas, face, time_s, unit)
    _draw_strip(canvas, story, time_s)
    return canvas


def _draw_face(canvas: Frame, face: Face, time_s: float, unit: float) -> None:
    placed, window = face.box(time_s), face.window(time_s)
    if placed is None:
        return
    height, width = canvas.shape[:2]
    box, bridged = placed
    x1, y1, x2, y2 = (box * (width, height, width, height)).astype(int).tolist()
    shade = rgb(window["emotion"]) if window else (200, 200, 200)
    thick = max(round(1.5 * unit), 1)
    if bridged:
        _dashed(canvas, (x1, y1, x2, y2), shade, thick)
    else:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), shade, thick)
    _label(canvas, face.name, (x1, y1 - round(5 * unit)), unit, shade)
    if window is None:
        return
    ranked = sorted(window["scores"].items(), key=lambda item: -item[1])[:_BARS]
    row, length = round(13 * unit), round(60 * unit)
    below = y2 + round(4 * unit)
    fits = below + len(ranked) * row < height * (1 - _STRIP)
    start = below if fits else max(y1, 0) + round(4 * unit)
    for k, (label, score) in enumerate(ranked):
        top = start + k * row
        filled = max(round(length * score), 1)
        cv2.rectangle(canvas, (x1, top), (x1 + length, top + row - 3), (40, 40, 40), -1)
        cv2.rectangle(canvas, (x1, top), (x1 + filled, top + row - 3), rgb(label), -1)
        text = f"{label} {score:.2f}"
        _label(canvas, text, (x1 + length + 4, top + row - 4), 0.8 * unit, (255, 255, 255))


def _label(
    canvas: Frame, text: str, at: tuple[int, int], unit: float, shade: tuple[int, int, int]
) -> None:
    """Text with a dark outline, to be read on any ground."""
    place = (max(at[0], 2), max(at[1], round(12 * unit)))
    thick = max(round(unit), 1)
    cv2.putText(canvas, text, place, _FONT, 0.4 * unit, (0, 0, 0), thick + 2, cv2.LINE_AA)
    cv2.putText(canvas, text, place, _FONT, 0.4 * unit, shade, thick, cv2.LINE_AA)


def _dashed(
    canvas: Frame, box: tuple[int, int, int, int], shade: tuple[int, int, int], thick: int
) -> None:
    x1, y1, x2, y2 = box
    for start in range(0, 8, 2):
        a, b = start / 8, (start + 1) / 8
        left, right = (round(x1 + (x2 - x1) * t) for t in (a, b))
        top, bottom = (round(y1 + (y2 - y1) * t) for t in (a, b))
        for y in (y1, y2):
            cv2.line(canvas, (left, y), (right, y), shade, thick)
        for x in (x1, x2):
            cv2.line(canvas, (x, top), (x, bottom), shade, thick)


def _draw_strip(canvas: Frame, story: Story, time_s: float) -> None:
    """A lane a face along the lower edge, coloured by emotion; a line where the film is."""
    height, width = canvas.shape[:2]
    tall = max(round(height * _STRIP), 6)
    top = height - tall
    canvas[top:] //= 4
    scale = width / max(story.duration_s, 1e-6)
    lane = tall / max(len(story.faces), 1)
    for k, face in enumerate(story.faces):
        for w in face.windows:
            left, right = round(w["start_s"] * scale), max(round(w["end_s"] * scale), 1)
            y1, y2 = top + round(k * lane), top + max(round((k + 1) * lane) - 1, 1)
            cv2.rectangle(canvas, (left, y1), (right - 1, y2), rgb(w["emotion"]), -1)
    x = min(round(time_s * scale), width - 1)
    cv2.line(canvas, (x, top - 2), (x, height), (255, 255, 255), max(width // 480, 1))


def _video_stream(out: Any, picture: Frame, base: Fraction) -> Any:
    stream = out.add_stream("libx264", rate=30, options={"crf": "20", "preset": "veryfast"})
    height, width = picture.shape[:2]
    stream.width, stream.height = width - width % 2, height - height % 2
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = base
    return stream


class _Sound:
    """The first sound stream of the source, copied or encoded into the target."""

    def __init__(self, out: Any, container: Any) -> None:
        self._out = out
        self.source: list[Any] = list(container.streams.audio[:1])
        self._stream: Any = None
        self._copies = False
        for stream in self.source:
            context = stream.codec_context
            self._copies = context.codec.canonical_name in out.supported_codecs
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
            for frame in _frames(packet):
                self._encode(frame)

    def finish(self) -> None:
        if self._stream is not None and not self._copies:
            self._encode(None)
            self._out.mux(self._stream.encode())

    def _encode(self, frame: Any) -> None:
        """A frame, or what is left where there is none any more, in the encoder's own lengths."""
        for part in self._resampler.resample(frame):
            self._out.mux(self._stream.encode(part))
