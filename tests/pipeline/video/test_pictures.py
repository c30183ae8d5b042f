"""Pictures as they are meant: one film, encoded in the ways of archives, shows one face in one place."""

import gc
import math
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from skimage import data

from emolake.pipeline.annotators.base import WindowInput, load_annotator
from emolake.pipeline.config import AnnotatorConfig, DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.faces.stage import FaceStage
from emolake.pipeline.video.decode import Ending, probe, sampled_frames
from emolake.pipeline.video.frame import Frame, TimedFrame
from emolake.pipeline.video.picture import Pictures, square

WIDTH, HEIGHT, RATE, FRAMES = 512, 384, 25, 25
SCENE = np.asarray(cv2.resize(np.asarray(data.astronaut())[:320], (854, 534)), np.uint8)
BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""BT.709 -> BT.2020, linear light (ITU-R BT.2087)."""


def moment(at: float) -> Frame:
    """What the camera saw at a frame's time: a face that moves 8 pixels a frame."""
    left = round(8 * at)
    return np.ascontiguousarray(SCENE[66 : 66 + HEIGHT, left : left + WIDTH])


def woven(k: int) -> Frame:
    picture = moment(k)
    picture[1::2] = moment(k + 0.5)[1::2]
    return picture


def by_fields(picture: Frame) -> VideoFrame:
    """4:2:0 as interlaced video has it, the chroma of each field its own."""
    fields = [
        VideoFrame.from_ndarray(np.ascontiguousarray(picture[k::2]), format="rgb24")
        .reformat(format="yuv420p")
        .to_ndarray()
        for k in (0, 1)
    ]
    half = HEIGHT // 2
    planes = np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8)
    chroma = np.empty((2, half, WIDTH // 2), np.uint8)
    for k, field in enumerate(fields):
        planes[k:HEIGHT:2] = field[:half]
        chroma[:, k::2] = field[half:].reshape(2, half // 2, WIDTH // 2)
    planes[HEIGHT:] = chroma.reshape(half, WIDTH)
    return VideoFrame.from_ndarray(planes, format="yuv420p")


def film(path: Path, *shown: Any, **way: Any) -> Path:
    """`encoded`, in a thread of its own: SVT-AV1, run by root, gives its caller the highest real-time
    priority (SCHED_FIFO 99), and so every process that is started there, of which one that spins stops the
    machine."""
    with ThreadPoolExecutor(1) as own:
        return own.submit(encoded, path, *shown, **way).result()


def encoded(
    path: Path,
    shown: Callable[[int], Frame | NDArray[np.uint16] | VideoFrame] = moment,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    matrix: int | None = None,
    colours: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    first: int = 0,
    **options: str,
) -> Path:
    with av.open(str(path), "w") as out:
        stream: Any = None
        for k in range(FRAMES):
            picture = shown(k)
            if not isinstance(picture, VideoFrame):
                kind = "rgb24" if picture.dtype == np.uint8 else "rgb48le"
                picture = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=kind)
            if stream is None:
                stream = out.add_stream(codec, rate=RATE, options=options)
                stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, pix_fmt
                stream.time_base = Fraction(1, RATE)
                for name, value in (colours or {}).items():
                    setattr(stream.codec_context, name, value)
                if aspect is not None:
                    stream.codec_context.sample_aspect_ratio = aspect
            frame = picture.reformat(
                format=pix_fmt,
                dst_colorspace=matrix,
                dst_color_range=(colours or {}).get("color_range"),
            )
            for name, value in (colours or {}).items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = first + k, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def light(k: int) -> NDArray[np.float64]:
    """Linear, in parts of white, BT.2020, as a monitor shows the plain film."""
    return (moment(k) / 255) ** 2.4 @ BT2020.T


def pq(k: int) -> NDArray[np.uint16]:
    """SMPTE ST 2084, white at 203 cd/m2."""
    power = (light(k) * 203 / 10_000) ** 0.1593017578125
    coded = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return (coded * 65535).round().astype(np.uint16)


def hlg(k: int) -> NDArray[np.uint16]:
    """ARIB STD-B67 for a display of 1000 cd/m2, white at 203."""
    shown = light(k) * 203 / 1000
    luminance = shown @ (0.2627, 0.6780, 0.0593)
    scene = shown * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
    dark = np.sqrt(3 * scene)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return (np.where(scene <= 1 / 12, dark, bright) * 65535).round().astype(np.uint16)


def wide(k: int) -> NDArray[np.uint16]:
    return (light(k) ** (1 / 2.4) * 65535).round().astype(np.uint16)


def squeezed(width: int, height: int) -> Callable[[int], Frame]:
    return lambda k: np.asarray(
        cv2.resize(moment(k), (width, height), interpolation=cv2.INTER_AREA), np.uint8
    )


def placed(a: int, b: int, c: int, d: int) -> Callable[[Path], None]:
    """Writes a display matrix into an MP4 (ISO/IEC 14496-12, 8.3.2)."""

    def write(path: Path) -> None:
        content = bytearray(path.read_bytes())
        at = content.find(b"tkhd")
        matrix = at + 8 + (20 if content[at + 4] == 0 else 32) + 16
        one = 1 << 16
        values = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
        content[matrix : matrix + 36] = struct.pack(">9i", *values)
        path.write_bytes(content)

    return write


def turned(*how: Any) -> Callable[[int], Frame]:
    def shown(k: int) -> Frame:
        picture = moment(k)
        for act in how:
            picture = act(picture)
        return np.ascontiguousarray(picture)

    return shown


HD10: dict[str, Any] = {"suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv420p10le", "matrix": 9}
WAYS: dict[str, dict[str, Any]] = {
    "oblong_pixels_of_pal": {"shown": squeezed(480, 384), "aspect": Fraction(16, 15)},
    "oblong_pixels_of_ntsc": {"shown": squeezed(512, 320), "aspect": Fraction(5, 6)},
    "half_the_width": {"shown": squeezed(256, 384), "aspect": Fraction(2, 1)},
    "interlaced_mpeg2": {
        "suffix": ".mpg", "codec": "mpeg2video", "shown": lambda k: by_fields(woven(k)),
        "flags": "+ildct+ilme", "top": "1", "b": "8M",
    },
    "interlaced_h264": {
        "shown": lambda k: by_fields(woven(k)), "flags": "+ildct", "x264-params": "tff=1",
    },
    "interlaced_without_a_flag": {"shown": lambda k: by_fields(woven(k)), "crf": "16"},
    "interlaced_professional": {
        "suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv422p10le", "shown": woven,
    },
    "interlaced_capture": {
        "suffix": ".mov", "codec": "rawvideo", "pix_fmt": "uyvy422", "shown": woven,
    },
    "full_range": {"colours": {"color_range": 2}},
    "ten_bits_of_full_range": {
        "suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv420p10le", "colours": {"color_range": 2},
    },
    "twelve_bits": {"suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv422p12le"},
    "hdr10": HD10 | {
        "shown": pq, "colours": {"color_trc": 16, "color_primaries": 9, "colorspace": 9},
    },
    "hlg": HD10 | {
        "shown": hlg, "colours": {"color_trc": 18, "color_primaries": 9, "colorspace": 9},
    },
    "wide_gamut": HD10 | {
        "shown": wide, "colours": {"color_trc": 14, "color_primaries": 9, "colorspace": 9},
    },
    "bt709_by_its_tag": {"matrix": 1, "colours": {"colorspace": 1}},
    "odd_size": {
        "suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv444p",
        "shown": lambda k: moment(k)[:-1, :-1],
    },
    "upright_by_a_quarter": {"shown": turned(np.rot90), "after": placed(0, 1, -1, 0)},
    "upright_by_three_quarters": {
        "shown": turned(lambda p: np.rot90(p, 3)), "after": placed(0, -1, 1, 0),
    },
    "upside_down": {"shown": turned(lambda p: np.rot90(p, 2)), "after": placed(-1, 0, 0, -1)},
    "mirrored": {"shown": turned(np.fliplr), "after": placed(-1, 0, 0, 1)},
    "mirrored_downwards": {"shown": turned(np.flipud), "after": placed(1, 0, 0, -1)},
    "mirrored_and_turned": {
        "shown": turned(lambda p: p.swapaxes(0, 1)), "after": placed(0, 1, 1, 0),
    },
    "turned_and_oblong": {
        "shown": turned(np.rot90, lambda p: cv2.resize(p, (360, 512))),
        "aspect": Fraction(16, 15), "after": placed(0, 1, -1, 0),
    },
    "hdr_of_a_phone_upright": {
        "suffix": ".mov", "codec": "libx265", "pix_fmt": "yuv420p10le", "matrix": 9,
        "shown": lambda k: np.rot90(hlg(k)), "after": placed(0, 1, -1, 0),
        "colours": {"color_trc": 18, "color_primaries": 9, "colorspace": 9},
        "x265-params": "log-level=none", "crf": "14", "preset": "ultrafast",
    },
    "hevc": {"codec": "libx265", "x265-params": "log-level=none", "preset": "ultrafast", "crf": "14"},
    "vp9": {"suffix": ".webm", "codec": "libvpx-vp9", "deadline": "realtime", "b": "6M"},
    "av1": {"codec": "libsvtav1", "preset": "12", "crf": "20"},
    "prores": {"suffix": ".mov", "codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "motion_jpeg_2000": {"suffix": ".mkv", "codec": "jpeg2000", "pix_fmt": "yuv422p"},
    "windows_media": {"suffix": ".wmv", "codec": "wmv2", "b": "8M"},
    "flash": {"suffix": ".flv", "codec": "flv1", "b": "8M"},
    "mpeg4_part_2": {"suffix": ".avi", "codec": "mpeg4", "b": "8M"},
    "raw_uyvy": {"suffix": ".mov", "codec": "rawvideo", "pix_fmt": "uyvy422"},
    "raw_from_below": {"suffix": ".avi", "codec": "rawvideo", "pix_fmt": "bgr24"},
    "four_one_one": {"suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv411p"},
    "sixteen_bits_rgb": {"suffix": ".mkv", "codec": "ffv1", "pix_fmt": "gbrp16le"},
    "screen_recording_with_alpha": {"suffix": ".mov", "codec": "qtrle", "pix_fmt": "argb"},
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What the pipeline makes of a film: its frames, its one face's box (4,) and what it is annotated as."""

    frames: list[TimedFrame]
    box: NDArray[np.float64]
    scores: dict[str, float]


@pytest.fixture(scope="module")
def seen() -> Callable[[Path], Seen]:
    annotator = load_annotator("emo-llama-tiny", AnnotatorConfig(), "cpu")
    stage = FaceStage(FacesConfig(), WindowsConfig(), annotator.needs, 4.0)

    def watch(path: Path) -> Seen:
        frames = frames_of(path)
        found = stage(frames)
        (track,), (window,) = found.tracks, found.windows
        places = [[place[side] for side in ("x1", "y1", "x2", "y2")] for place in track["path"]]
        (told,) = annotator.annotate([WindowInput.of(window, annotator.needs, {})])
        return Seen(frames, np.median(places, 0), told.scores)

    return watch


@pytest.fixture(scope="module")
def plain(seen: Callable[[Path], Seen], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen(film(tmp_path_factory.mktemp("plain") / "plain.mp4", crf="12"))


@pytest.mark.parametrize("name", WAYS)
def test_it_is_seen_as_the_plain_film_is(
    tmp_path: Path, seen: Callable[[Path], Seen], plain: Seen, name: str
) -> None:
    way = dict(WAYS[name])
    after = way.pop("after", None)
    path = film(tmp_path / f"film{way.pop('suffix', '.mp4')}", **way)
    if after is not None:
        after(path)
    ours = seen(path)
    assert len(ours.frames) == len(plain.frames) == 4
    for a, b in zip(ours.frames, plain.frames, strict=True):
        assert abs(a.width - WIDTH) <= 1
        assert abs(a.height - HEIGHT) <= 1
        assert np.abs(thumbnail(a) - thumbnail(b)).mean() < 3
    assert ours.box == pytest.approx(plain.box, abs=0.03 * (plain.box[3] - plain.box[1]))
    assert max(ours.scores, key=ours.scores.__getitem__) == max(
        plain.scores, key=plain.scores.__getitem__
    )
    assert list(ours.scores.values()) == pytest.approx(list(plain.scores.values()), abs=0.1)
    info = probe(str(path))
    assert (info.width, info.height) == (ours.frames[0].width, ours.frames[0].height)


def thumbnail(frame: TimedFrame) -> NDArray[np.int64]:
    small = cv2.resize(frame.rgb(), (128, 96), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.int64)


def test_a_broadcast_that_changes_its_format_is_square_before_and_after(tmp_path: Path) -> None:
    parts = [
        film(
            tmp_path / f"{n}.ts", squeezed(720, 576), aspect=Fraction(n, 45), first=first,
            g="5", bf="2", preset="ultrafast",
        )
        for n, first in ((48, 0), (64, FRAMES))
    ]  # fmt: skip
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    widths = [frame.width for frame in frames_of(joined)]
    assert widths == sorted(widths)
    assert set(widths) == {768, 1024}
    each = sampled_frames(str(joined), DecodeConfig(sample_fps=25), 0.0, math.inf, Ending())
    widths = [frame.width for frame in each]
    assert (widths[:25], set(widths[25:])) == ([768] * 25, {1024}), "not before the old are out"
    later = sampled_frames(str(joined), DecodeConfig(), 1.25, math.inf, Ending())
    assert {frame.width for frame in later} == {1024}


def test_of_a_video_that_changes_its_size_boxes_are_parts_of_their_own_frames(
    tmp_path: Path,
) -> None:
    parts = [
        film(tmp_path / f"{w}.ts", squeezed(w, h), first=first, g="5", bf="0", preset="ultrafast")
        for w, h, first in ((480, 384, 0), (240, 192, FRAMES))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    stage = FaceStage(FacesConfig(min_face=20), WindowsConfig(), Needs(), 4.0)
    first, second = stage(frames_of(joined)).tracks
    assert second["start_s"] >= 1.0
    for side in ("y1", "y2"):
        assert first["mean_box"][side] == pytest.approx(second["mean_box"][side], abs=0.03)


def test_decord_leaves_mirrored_pictures_to_pyav(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    path = film(tmp_path / "mirrored.mp4", turned(np.fliplr))
    placed(-1, 0, 0, 1)(path)
    config = DecodeConfig(backend="decord")
    (first, *_) = sampled_frames(str(path), config, 0.0, math.inf, Ending())
    assert np.abs(thumbnail(first) - thumbnail(frames_of(path)[0])).mean() < 3


def test_frames_are_freed_as_soon_as_nobody_holds_them(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", turned(np.rot90))
    placed(0, 1, -1, 0)(path)

    def held() -> int:
        return sum(type(thing) is VideoFrame for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = held()
        assert len([frame.rgb(64).shape for frame in frames_of(path)]) == 4
        left = held() - before
    finally:
        gc.enable()
    assert left <= 2


def test_a_file_whose_size_changes_all_the_time_keeps_few_scalers(tmp_path: Path) -> None:
    with av.open(str(film(tmp_path / "film.mp4"))) as container:
        video = container.streams.video[0]
        pictures = Pictures(video)
        frame = next(container.decode(video))
        for width in range(100, 200):
            pictures.timed(frame, 0.0).render(width, width)
    assert len(pictures._scalers) <= 8


def test_film_that_is_flagged_as_interlaced_keeps_all_its_lines(tmp_path: Path) -> None:
    fine = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    fine[200:300, 200:300] = 255
    fine[250] = 0
    path = film(
        tmp_path / "film.mpg", lambda k: by_fields(fine), codec="mpeg2video",
        flags="+ildct+ilme", top="1", b="8M",
    )  # fmt: skip
    picture = frames_of(path)[0].rgb()
    assert picture[249:252, 250, 0].tolist() == pytest.approx([255, 0, 255], abs=40)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (None, (720, 576)),
        (Fraction(0, 1), (720, 576)),
        (Fraction(16, 11), (1047, 576)),
        (Fraction(9, 10), (720, 640)),
        (Fraction(10_000, 1), (720, 576)),
    ],
)
def test_a_pixel_of_an_impossible_shape_is_taken_for_a_square(
    aspect: Fraction | None, size: tuple[int, int]
) -> None:
    assert square(720, 576, aspect) == size


def test_without_the_loop_filter_it_is_nearly_the_picture(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", crf="32")
    whole, fast = (frames_of(path, fast=fast) for fast in (False, True))
    assert [frame.time_s for frame in fast] == [frame.time_s for frame in whole]
    for a, b in zip(whole, fast, strict=True):
        apart = np.abs(a.rgb().astype(int) - b.rgb().astype(int)).mean()
        assert 0.1 < apart < 3


def frames_of(path: Path, *, fast: bool = False) -> list[TimedFrame]:
    return list(sampled_frames(str(path), DecodeConfig(fast=fast), 0.0, math.inf, Ending()))
