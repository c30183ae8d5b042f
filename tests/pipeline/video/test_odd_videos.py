"""Videos as archives hold them: odd sizes, pixel formats, rates and crowds, through the face stage."""

import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from emolake.pipeline.config import DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.errors import VideoError
from emolake.pipeline.faces.align import CropSpec, crop_matrix, cut
from emolake.pipeline.faces.stage import FaceStage, SegmentFaces
from emolake.pipeline.video.decode import Ending, probe, sampled_frames
from tests.conftest import SMALL_CROPS

Picture = NDArray[np.uint8]


def portrait(width: int, height: int) -> Picture:
    """A picture (height, width, 3) with one face, some 40 % of its height."""
    whole = np.asarray(data.astronaut())[:300, 40:400]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def film(
    path: Path,
    pictures: list[Picture],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    **options: str,
) -> Path:
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = Fraction(1, rate)
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            out.mux(stream.encode(frame.reformat(format=pix_fmt)))
        out.mux(stream.encode())
    return path


def faces_in(path: Path, **faces: Any) -> SegmentFaces:
    stage = FaceStage(FacesConfig(**faces), WindowsConfig(), SMALL_CROPS, 4.0)
    frames = sampled_frames(str(path), DecodeConfig(), 0.0, math.inf, Ending())
    return stage(frames)


VARIANTS: dict[str, dict[str, Any]] = {
    "gray": {"suffix": ".mkv", "codec": "ffv1", "pix_fmt": "gray"},
    "alpha": {"suffix": ".mov", "codec": "png", "pix_fmt": "rgba"},
    "ten_bit": {"suffix": ".mkv", "codec": "ffv1", "pix_fmt": "yuv420p10le"},
    "full_chroma": {"suffix": ".mp4", "pix_fmt": "yuv444p"},
    "interlaced": {"suffix": ".mpg", "codec": "mpeg2video", "flags": "+ildct+ilme", "top": "1"},
    "motion_jpeg": {"suffix": ".avi", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "every_frame_a_keyframe": {"suffix": ".mp4", "g": "1", "preset": "ultrafast"},
    "many_b_frames": {"suffix": ".mp4", "bf": "8", "preset": "ultrafast"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_face_is_found_whatever_the_pixels_are(tmp_path, name: str) -> None:
    options = dict(VARIANTS[name])
    path = tmp_path / f"{name}{options.pop('suffix')}"
    found = faces_in(film(path, [portrait(480, 400)] * 25, **options))
    (track,) = found.tracks
    assert (track["n_detections"], found.frames_seen) == (4, 4)
    assert 0.3 < (track["mean_box"]["x1"] + track["mean_box"]["x2"]) / 2 < 0.7


@pytest.mark.parametrize(("rate", "seconds", "seen"), [(1, 6, 6), (240, 2, 8), (3, 3, 9)])
def test_any_frame_rate_is_sampled_by_the_clock(
    tmp_path, rate: int, seconds: int, seen: int
) -> None:
    path = film(tmp_path / "rate.mp4", [portrait(320, 260)] * (rate * seconds), rate=rate)
    found = faces_in(path)
    assert found.frames_seen == seen
    (track,) = found.tracks
    assert track["start_s"] == 0.0
    assert track["end_s"] == pytest.approx(seconds - 1 / rate + 1 / max(rate, 4), abs=0.26)


def test_a_frame_of_8k_is_read(tmp_path) -> None:
    path = film(tmp_path / "8k.mp4", [portrait(7680, 4320)] * 2, preset="ultrafast")
    (track,) = faces_in(path, min_track_seconds=0).tracks
    assert track["n_detections"] == 1  # two frames, one sampling cell


def test_a_crowd_of_two_hundred_is_found(tmp_path) -> None:
    face = portrait(84, 70)
    crowd = np.tile(face, (10, 20, 1))
    path = film(tmp_path / "crowd.mp4", [crowd] * 20, crf="10")
    found = faces_in(path, detect_width=1680, min_face=20, min_score=0.8)
    assert len(found.tracks) >= 190
    assert all(track["n_detections"] == 4 for track in found.tracks)


@pytest.mark.parametrize("size", [(2, 2), (16, 16), (1920, 16)])
def test_frames_too_small_for_a_face_have_none(tmp_path, size: tuple[int, int]) -> None:
    path = film(tmp_path / "tiny.mp4", [np.full((size[1], size[0], 3), 90, np.uint8)] * 10)
    found = faces_in(path)
    assert (found.tracks, found.frames_seen) == ([], 2)


def test_a_face_of_one_pixel_can_be_cut() -> None:
    picture = portrait(64, 64)
    for corner in (0.0, 40.0, 63.0):
        box = np.array([corner, corner, corner + 1, corner + 1], np.float32)
        crop = cut(picture, crop_matrix(box, np.tile(box[:2], (5, 1)), CropSpec(48)), 48)
        assert crop.shape == (48, 48, 3)


def test_a_video_that_promises_no_size_is_refused(tmp_path) -> None:
    path = film(
        tmp_path / "size.mov", [portrait(64, 48)] * 4, codec="rawvideo", pix_fmt="rgb24", rate=4
    )
    content = bytearray(path.read_bytes())
    entry = content.find(b"raw ", content.find(b"stsd"))
    content[entry + 28 : entry + 32] = struct.pack(">2H", 0, 0)  # ISO/IEC 14496-12, 12.1.3
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        probe(str(path))
    assert caught.value.reason == "decode_error"


def test_a_video_that_changes_its_size_keeps_its_faces(tmp_path) -> None:
    parts = [
        film(tmp_path / f"{w}.ts", [portrait(w, h)] * 50, g="10")
        for w, h in ((480, 400), (240, 200))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = faces_in(joined, min_face=20)
    assert len(found.tracks) >= 1
    assert found.frames_seen >= 8
