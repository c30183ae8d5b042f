import math
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from emolake.pipeline.config import DecodeConfig
from emolake.pipeline.errors import VideoError
from emolake.pipeline.video.decode import Ending, probe, sampled_frames, segment_spans
from emolake.pipeline.video.frame import TimedFrame
from emolake.pipeline.video.transcode import excerpt


def frames_of(
    path: Path, start: float = 0.0, end: float = math.inf, **options: object
) -> tuple[list[TimedFrame], Ending]:
    ending = Ending()
    config = DecodeConfig(**options)  # type: ignore[arg-type]
    return list(sampled_frames(str(path), config, start, end, ending)), ending


def all_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return sorted(float(f.time) for f in container.decode(video=0))


def test_sampling_takes_the_first_frame_of_each_cell_by_presentation_time(clips) -> None:
    path = clips / "face_noface.mov"  # 30 fps, then 24 fps
    wanted: dict[int, float] = {}
    for time_s in all_times(path):
        wanted.setdefault(math.floor(time_s * 4 + 1e-6), time_s)
    frames, ending = frames_of(path)
    assert [f.time_s for f in frames] == pytest.approx(list(wanted.values()), abs=1e-6)
    assert not ending.truncated


@pytest.mark.parametrize("seconds", [1.0, 3.0, 7.3])
def test_segments_together_give_the_frames_of_the_whole(clips, seconds: float) -> None:
    path = clips / "WolfgangLanger_Pexels.mp4"
    whole, _ = frames_of(path)
    pieces = []
    for start, end in segment_spans(
        probe(str(path)).duration_s, DecodeConfig(segment_seconds=seconds)
    ):
        pieces += frames_of(path, start, end)[0]
    assert [f.time_s for f in pieces] == pytest.approx([f.time_s for f in whole], abs=1e-6)
    for ours, theirs in zip(pieces[::13], whole[::13], strict=True):
        np.testing.assert_array_equal(ours.rgb(64), theirs.rgb(64))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("tv.ts", "libx264", {"x264-params": "open-gop=1:keyint=50:min-keyint=50:scenecut=0"}),
        ("tv.mpg", "mpeg2video", {"g": "40", "bf": "2", "b": "4M"}),
        ("indexed.mp4", "libx264", {"g": "50"}),
        # Several pictures a packet, of which the first alone tells its time.
        ("small.mpg", "libx264", {"crf": "51", "g": "125", "preset": "ultrafast"}),
        # Its decoder makes pictures out of changes alone, before it has seen any that is whole.
        ("old.ts", "mpeg4", {"g": "125", "b": "4M"}),
    ],
)
def test_segments_of_formats_without_an_index_lose_nothing(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 255, (96, 360, 3), np.uint8)
        for k in range(200):
            shown = np.ascontiguousarray(noise[:, k : k + 160])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode())
    whole, _ = frames_of(path)
    for seconds in (3.0, 1.5):
        pieces, said = [], []
        spans = segment_spans(probe(str(path)).duration_s, DecodeConfig(segment_seconds=seconds))
        for start, end in spans:
            frames, ending = frames_of(path, start, end)
            pieces += frames
            said.append(ending.truncated)
        assert len(spans) == math.ceil(8 / seconds)
        assert [f.time_s for f in pieces] == pytest.approx([f.time_s for f in whole], abs=1e-6)
        for ours, theirs in zip(pieces, whole, strict=True):
            np.testing.assert_array_equal(ours.rgb(), theirs.rgb(), f"{seconds} {ours.time_s}")
        assert not any(said)
    for wanted in (0.52, 3.12, 5.92):
        span = (wanted - 0.01, wanted + 1)
        begins = excerpt(str(path), tmp_path / "part.mp4", lambda frame, _: frame, span, 320)
        assert begins == pytest.approx(wanted, abs=1e-3)


def test_a_segment_begins_where_it_should_however_far_the_keyframe_before_it_is(tmp_path) -> None:
    path = tmp_path / "camera.ts"
    with av.open(str(path), "w") as out:
        options = {"g": "9999", "sc_threshold": "0", "preset": "ultrafast"}
        stream = out.add_stream("libx264", rate=5, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for k in range(5 * 50):
            shown = np.full((64, 64, 3), k, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode())
    frames, ending = frames_of(path, 45.0, 48.0)
    assert frames[0].time_s == pytest.approx(45.0)
    assert len(frames) == 12
    assert frames[0].rgb().mean() == pytest.approx(5 * frames[0].time_s, abs=3)
    assert not ending.truncated


def test_decord_gives_the_same_frames(clips) -> None:
    pytest.importorskip("decord")
    for name in ("single_face.mp4", "WolfgangLanger_Pexels.mp4"):
        ours, _ = frames_of(clips / name)
        theirs, _ = frames_of(clips / name, backend="decord")
        assert [f.time_s for f in theirs] == pytest.approx([f.time_s for f in ours], abs=1e-3)
        for a, b in zip(ours[::9], theirs[::9], strict=True):
            assert np.abs(a.rgb(320).astype(int) - b.rgb(320)).mean() < 4


def test_rotated_video_comes_upright(clips, tmp_path) -> None:
    data = bytearray((clips / "single_face.mp4").read_bytes())
    at = data.find(b"tkhd")
    matrix = at + 8 + (20 if data[at + 4] == 0 else 32) + 16  # ISO/IEC 14496-12, 8.3.2
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 360 * one, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    (frame, *_), _ = frames_of(turned)
    (flat, *_), _ = frames_of(clips / "single_face.mp4")
    assert (probe(str(turned)).width, probe(str(turned)).height) == (360, 640)
    np.testing.assert_array_equal(frame.rgb(), np.rot90(flat.rgb(), -1))


def damaged(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_a_file_cut_behind_its_index_is_read_as_far_as_it_goes(clips, tmp_path) -> None:
    whole = (clips / "WolfgangLanger_Pexels.mp4").read_bytes()
    frames, ending = frames_of(damaged(tmp_path, "half.mp4", whole[: len(whole) // 2]))
    assert len(frames) > 20
    assert ending.truncated
    assert "19.6" in str(ending.detail)


def test_each_kind_of_bad_file_has_its_reason(clips, demo_videos, tmp_path) -> None:
    cases = {
        "not_a_video": [
            damaged(tmp_path, "empty.mp4", b""),
            damaged(tmp_path, "text.mp4", b"this is a text\n" * 100),
        ],
        "truncated": [demo_videos / "damaged.mp4"],
        "not_found": [tmp_path / "none.mp4"],
        "no_video_stream": [sound_only(tmp_path / "sound.mp4")],
    }
    for reason, paths in cases.items():
        for path in paths:
            with pytest.raises(VideoError) as caught:
                probe(str(path))
            assert caught.value.reason == reason, path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def test_frames_of_too_many_pixels_are_refused(clips) -> None:
    with pytest.raises(VideoError) as caught:
        frames_of(clips / "single_face.mp4", max_pixels=1000)
    assert caught.value.reason == "too_large"


def test_segment_spans_cover_the_time_line() -> None:
    config = DecodeConfig(segment_seconds=300)
    assert segment_spans(None, config) == [(0, math.inf)]
    assert segment_spans(600.0, config) == [(0, 300), (300, math.inf)]
    assert segment_spans(600.1, config) == [(0, 300), (300, 600), (600, math.inf)]
    assert segment_spans(0.0, config) == [(0, math.inf)]


def test_a_segment_is_a_whole_number_of_sampling_cells() -> None:
    config = DecodeConfig(segment_seconds=9.1, sample_fps=4)
    assert segment_spans(20.0, config) == [(0, 9.25), (9.25, 18.5), (18.5, math.inf)]


@pytest.mark.parametrize(("container", "options"), [("matroska", {"live": "1"}), ("flv", {})])
def test_a_recording_without_a_length_is_as_long_as_its_packets_say(
    tmp_path: Path, container: str, options: dict[str, str]
) -> None:
    """A live recording is one segment of unknown length no more, which no timeout would fit."""
    path = tmp_path / "live"
    with av.open(str(path), "w", container, options=options) as film:
        video = film.add_stream("flv1" if container == "flv" else "mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        for k in range(123):
            frame.pts = k
            film.mux(video.encode(frame))
        film.mux(video.encode())
    data = path.read_bytes()
    if container == "flv":  # what a recorder that was cut off never wrote
        at = data.index(b"duration")
        path.write_bytes(data[: at + 9] + bytes(8) + data[at + 17 :])
    assert probe(str(path)).duration_s == pytest.approx(12.3, abs=0.2)
