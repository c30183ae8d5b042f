"""A decoded frame -> the picture that its makers meant people to see.

Of what was interlaced and moves one field serves as the frame; oblong pixels become square; limited or full
range and the colour matrix become RGB, HDR and wide gamut BT.709; last it is turned and mirrored as its
display matrix says. Each by what the frame and its flags tell, so no segment changes a picture.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import cv2
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from emolake.pipeline.video.colour import is_sdr, sdr
from emolake.pipeline.video.frame import Frame, TimedFrame

_KEPT = 8  # scalers, and graphs, of one stream
_OBLONG = 4  # times as wide as high, or as high as wide: beyond it a pixel's shape is an error
_UNSPECIFIED = 2  # ITU-T H.273, of colours
_SD = (576, 1279)  # pixels at most, the shorter side and the longer
_TALLEST_INTERLACED = 1088
_COMB_STEP = 4  # columns
_COMB_DEPTH = 10  # of 255
_PACKED = {"yuyv422": 0, "uyvy422": 1}  # where the first luma stands of two bytes
_COMBED_IF_FLAGGED, _COMBED = 0.002, 0.02  # parts of the picture
_FINE_AS_A_FIELD = 4  # times less combed is a field of what is combed; texture is fine at each size


class Pictures:
    """Of one stream; make it before its first frame is decoded."""

    def __init__(self, stream: VideoStream) -> None:
        self._context = stream.codec_context
        self._by_container = stream.sample_aspect_ratio
        self._told = self._now = self._context.sample_aspect_ratio
        # Setting a scaler up for each frame costs as much as scaling a small one.
        self._scalers: dict[tuple[int, int], VideoReformatter] = defaultdict(VideoReformatter)
        self._fields: dict[tuple[int, int, str], Graph] = {}
        self._orientations: dict[int, tuple[bool, bool, bool]] = {}
        """By the angle that a frame tells: PyAV makes a circle of a frame that is asked for its side data,
        and memory grows with each until Python looks for circles."""

    def timed(self, frame: VideoFrame, time_s: float) -> TimedFrame:
        """The frame as it is shown; rendered when somebody asks for it."""
        width, height = square(frame.width, frame.height, self._aspect(frame))
        turned, flip_x, flip_y = self._orientation(frame)
        field: VideoFrame | None = None

        def render(across: int, down: int) -> Frame:
            nonlocal field
            if field is None:
                field = self._field(frame) if is_combed(frame) else frame
            picture = self._scaled(field, *((down, across) if turned else (across, down)))
            shown = picture.swapaxes(0, 1) if turned else picture
            shown = shown[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
            return np.ascontiguousarray(shown)

        return TimedFrame(time_s, *((height, width) if turned else (width, height)), render)

    def rgb(self, frame: VideoFrame, width: int | None = None) -> Frame:
        """The whole picture, (H, W, 3) uint8; at most so wide."""
        return self.timed(frame, 0.0).rgb(width)

    def _orientation(self, frame: VideoFrame) -> tuple[bool, bool, bool]:
        angle = frame.rotation
        if angle not in self._orientations:
            self._orientations[angle] = orientation(frame)
        return self._orientations[angle]

    def pass_over(self, frame: VideoFrame) -> None:
        """A frame that nobody asks for may be the keyframe with which the format changes."""
        self._aspect(frame)

    def _aspect(self, frame: VideoFrame) -> Fraction | None:
        """Of a pixel, width to height. A container's word counts above the codec's, but broadcasts change
        theirs in the middle, of which only the codec tells, and before the frames that are shown ahead of
        the keyframe have come out."""
        if frame.key_frame:
            self._now = self._context.sample_aspect_ratio
        return self._now if self._now != self._told else self._by_container

    def _field(self, frame: VideoFrame) -> VideoFrame:
        """The frame's even lines."""
        key = (frame.width, frame.height, frame.format.name)
        if key not in self._fields:
            if len(self._fields) == _KEPT:
                self._fields.clear()
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=Fraction(1, 1000),
            )
            graph.link_nodes(
                source, graph.add("field", "type=top"), graph.add("buffersink")
            ).configure()
            self._fields[key] = graph
        self._fields[key].vpush(frame)
        return self._fields[key].vpull()

    def _scaled(self, frame: VideoFrame, width: int, height: int) -> Frame:
        if (width, height) not in self._scalers and len(self._scalers) == _KEPT:
            self._scalers.clear()  # of a file whose size changes with each frame
        smaller = width <= frame.width and height <= frame.height
        plain = is_sdr(frame.color_trc, frame.color_primaries)
        scaled = (
            self._scalers[width, height]
            .reformat(
                frame,
                width,
                height,
                format="rgb24" if plain else "rgb48le",
                src_colorspace=_matrix(frame),
                interpolation="AREA" if smaller else "BILINEAR",
                threads=1,
            )
            .to_ndarray()
        )
        if plain:
            return np.asarray(scaled, np.uint8)
        return sdr(np.asarray(scaled, np.uint16), frame.color_trc, frame.color_primaries)


def square(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """The size in square pixels of a picture of oblong ones; the longer side of a pixel is kept."""
    if not aspect or not 1 / _OBLONG <= aspect <= _OBLONG:
        return width, height
    if aspect > 1:
        return round(width * aspect), height
    return width, round(height / aspect)


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Whether rows and columns are to be exchanged, and then x and y to be mirrored.

    The display matrix (ISO/IEC 14496-12, 6.2.2) takes a pixel (p, q) to (a p + c q, b p + d q).
    """
    told = frame.side_data.get("DISPLAYMATRIX")
    if told is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(memoryview(told), np.int32)[:5].tolist()  # type: ignore[arg-type]
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, c < 0, b < 0) if turned else (False, a < 0, d < 0)


def is_mirrored(frame: VideoFrame) -> bool:
    """Whether its display matrix turns it over, and not round alone."""
    turned, flip_x, flip_y = orientation(frame)
    return turned ^ flip_x ^ flip_y


def is_combed(frame: VideoFrame) -> bool:
    """Whether the frame's lines show two moments in turn. Flags alone do not tell: film is flagged as
    interlaced and has no combs, and what was once encoded wrongly has combs and no flag."""
    least = _COMBED_IF_FLAGGED if frame.interlaced_frame else _COMBED
    luma = _luma(frame)
    if luma is None or len(luma) < 8 or frame.height > _TALLEST_INTERLACED:
        return False
    combed = _combed(luma)
    return combed > least and combed > _FINE_AS_A_FIELD * _combed(luma[::2])


def _combed(luma: NDArray[np.uint8]) -> float:
    """The part of a picture in which three steps from line to line go up, down and up, or the reverse."""
    above, below = luma[:-1], luma[1:]
    # What is below 0 OpenCV makes 0: no wider numbers are needed, which takes a tenth of the time.
    up, down = (cv2.subtract(*pair) > _COMB_DEPTH for pair in ((below, above), (above, below)))
    combs = (up[:-2] & down[1:-1] & up[2:]) | (down[:-2] & up[1:-1] & down[2:])
    return float(np.count_nonzero(combs) / combs.size)


def _luma(frame: VideoFrame) -> NDArray[np.uint8] | None:
    """Some columns of it, 0..255; None where it does not lie by itself in the first plane."""
    layout = frame.format
    if layout.name in _PACKED:
        plane = frame.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        first = _PACKED[layout.name]
        return np.ascontiguousarray(lines[: frame.height, first : 2 * frame.width : 2 * _COMB_STEP])
    flat = layout.is_planar or layout.name.startswith("gray")
    if layout.is_rgb or not flat or layout.is_big_endian or layout.has_palette:
        return None
    bits = layout.components[0].bits
    if layout.name.startswith(("p0", "p2", "p4", "nv20")):
        bits = 16  # they stand in the upper part of their words
    kind = np.dtype(np.uint8 if bits == 8 else np.uint16)
    plane = frame.planes[0]
    lines = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
    some = np.ascontiguousarray(lines[: frame.height, : frame.width : _COMB_STEP])
    return np.asarray(some >> (bits - 8), np.uint8)


def _matrix(frame: VideoFrame) -> int | None:
    """What a player takes where the file does not say: BT.709 for HD."""
    sides = sorted((frame.width, frame.height))
    hd = any(side > most for side, most in zip(sides, _SD, strict=True))
    return Colorspace.ITU709 if hd and frame.colorspace == _UNSPECIFIED else None
