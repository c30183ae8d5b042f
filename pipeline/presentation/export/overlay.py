"""The video with what was found drawn in: one streaming pass, sound kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2

from emolake.pipeline.errors import UserError
from emolake.pipeline.presentation.blur import Hidden, hidden, lasting
from emolake.pipeline.presentation.export.story import Face, Story
from emolake.pipeline.presentation.palette import rgb
from emolake.pipeline.video.decode import Clock, Source, open_video
from emolake.pipeline.video.frame import Frame
from emolake.pipeline.video.picture import Pictures
from emolake.pipeline.video.transcode import frames_of

_STRIP = 0.05  # height of the timeline strip, as a part of the frame's
_BARS = 3  # labels shown beside a face
_FONT = cv2.FONT_HERSHEY_SIMPLEX


Painter = Callable[[Frame, float], Frame]
"""A frame (H, W, 3) and its time in seconds -> what is written of it."""


def painter(story: Story, *, overlay: bool = True, blur: bool = False) -> Painter:
    """overlay: draws in what was found; blur: shows no recognisable face, and of a video that was not
    analysed whole nothing at all."""
    faces: Hidden = None
    if blur:
        lasts = [lasting(f.path, f.start_s, f.end_s).tolist() for f in story.faces if len(f.path)]
        faces = lasts if story.whole else "all"

    def paint(picture: Frame, time_s: float) -> Frame:
        shown = hidden(picture, time_s, faces)
        return drawn_on(shown, story, time_s) if overlay else shown

    return paint


def write_stills(story: Story, source: Source, folder: Path, paint: Painter) -> int:
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
        pictures, clock = Pictures(video), Clock(container, video)
        for packet in container.demux(video):
            for frame in frames_of(packet):
                time_s = clock(frame)
                while made < len(wanted) and wanted[made][0] <= time_s:
                    middle, name = wanted[made]
                    path = folder / f"{middle:09.3f}_{name.replace(' ', '')}.png"
                    drawn = paint(pictures.rgb(frame), time_s)
                    cv2.imwrite(str(path), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
                    made += 1
                if made == len(wanted):
                    return made
    return made


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
