"""What is said and how it sounds, on the video's clock."""

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from emolake.pipeline.storage.files import Storage
from emolake.pipeline.video.sound import RATE, read_sound
from emolake.pipeline.video.transcripts import (
    Cue,
    parse_cues,
    read_subtitles,
    read_transcript,
    said_in,
)

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Hello</i> there,
world.

2
00:00:03,000 --> 00:00:04,000
{\\an8}Bye.
"""
VTT = """WEBVTT

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start
<v Anna>Hello there,
world.

00:00:03.000 --> 00:00:04.000
Bye.
"""
CUES = [Cue(1.0, 2.5, "Hello there, world."), Cue(3.0, 4.0, "Bye.")]


UNNUMBERED = re.sub(r"^\d+\n", "", SRT, flags=re.MULTILINE)
NOTED = VTT.replace("\n\n00:00:03", "\n\nNOTE to the editor:\nlouder\n\nfarewell\n00:00:03")


@pytest.mark.parametrize(
    "text", [SRT, VTT, SRT.replace("\n", "\r\n"), "\n\n" + SRT, UNNUMBERED, NOTED]
)
def test_subrip_and_webvtt_say_the_same(text: str) -> None:
    assert parse_cues(text) == CUES


def test_a_text_without_cues_is_no_transcript_and_an_empty_one_is() -> None:
    with pytest.raises(ValueError, match="no SubRip or WebVTT cue"):
        parse_cues("Dear diary,\n\nnothing happened.")
    assert parse_cues("WEBVTT\n") == []


def test_cues_go_to_the_windows_they_overlap() -> None:
    assert said_in(CUES, 0.0, 2.0) == "Hello there, world."
    assert said_in(CUES, 2.0, 4.0) == "Hello there, world. Bye."
    assert said_in(CUES, 4.0, 6.0) is None


def test_a_sidecar_is_found_by_name_or_named(tmp_path: Path) -> None:
    video = str(tmp_path / "a.b.mp4")
    assert read_transcript(video, None, Storage()) is None
    (tmp_path / "a.b.vtt").write_text(VTT)
    assert read_transcript(video, None, Storage()) == CUES
    (tmp_path / "other.srt").write_bytes(b"\xef\xbb\xbf" + SRT.encode())
    assert read_transcript(video, str(tmp_path / "other.srt"), Storage()) == CUES
    with pytest.raises(FileNotFoundError):
        read_transcript(video, str(tmp_path / "gone.srt"), Storage())


def tone(
    path: Path, seconds: float = 4.0, *, start_s: float = 0.0, subtitles: bool = False
) -> Path:
    """A film of gray frames with a tone that is silent in its first half."""
    with av.open(str(path), "w") as film:
        video = film.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = film.add_stream("aac", rate=44_100, layout="mono")
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        for k in range(round(seconds * 10)):
            frame.pts = k
            film.mux(video.encode(frame))
        film.mux(video.encode())
        count = round(seconds * 44_100)
        times = np.arange(count) / 44_100
        wave = np.where(times < seconds / 2, 0, np.sin(2 * np.pi * 440 * times)) * 12_000
        for at in range(0, count, 1024):
            part = wave[at : at + 1024].astype(np.int16)[None]
            sound = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            sound.sample_rate, sound.pts = 44_100, at + round(start_s * 44_100)
            film.mux(audio.encode(sound))
        film.mux(audio.encode())
    return path


def test_sound_lies_on_the_videos_clock(tmp_path: Path) -> None:
    whole = read_sound(str(tone(tmp_path / "a.mp4")), 0.0, float("inf"))
    assert whole is not None
    assert len(whole.samples) / RATE == pytest.approx(4.0, abs=0.1)
    quiet, loud = whole.span(0.5, 1.8), whole.span(2.2, 3.5)
    assert len(quiet) == round(1.3 * RATE)
    assert np.abs(quiet).max() < 500
    assert np.abs(loud).max() > 8_000
    part = read_sound(str(tmp_path / "a.mp4"), 1.5, 2.5)
    assert part is not None
    assert part.start_s == pytest.approx(1.5, abs=0.05)
    assert len(part.span(1.5, 2.5)) == pytest.approx(RATE, abs=RATE // 20)
    assert np.abs(part.span(1.5, 1.9)).max() < 500
    assert np.abs(part.span(2.1, 2.4)).max() > 8_000


@pytest.mark.parametrize("name", ["tv.mpg", "tv.ts"])
def test_sound_of_a_format_without_an_index_is_read_from_anywhere(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as film:
        video = film.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        audio = film.add_stream("mp2", rate=RATE, layout="mono")
        times = np.arange(RATE // 25) / RATE
        for k in range(200):
            picture = np.full((96, 160, 3), k, np.uint8)
            film.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            wave = (np.sin(2 * np.pi * 440 * times) * 8000).astype(np.int16)[None]
            sound = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            sound.sample_rate, sound.pts = RATE, k * len(times)
            film.mux(audio.encode(sound))
        film.mux(video.encode())
        film.mux(audio.encode())
    for start_s in (0.0, 1.0, 3.0, 5.5):
        part = read_sound(str(path), start_s, start_s + 2)
        assert part is not None
        assert part.start_s == pytest.approx(start_s, abs=0.1)
        assert len(part.samples) == pytest.approx(2 * RATE, abs=RATE // 10)
        assert np.abs(part.samples[RATE:]).max() > 4_000


def test_sound_that_begins_late_is_not_moved_to_the_front(tmp_path: Path) -> None:
    sound = read_sound(str(tone(tmp_path / "late.mkv", start_s=1.0)), 0.0, 10.0)
    assert sound is not None
    assert np.abs(sound.span(1.5, 2.8)).max() < 500
    assert np.abs(sound.span(3.2, 4.5)).max() > 8_000


def test_a_film_without_sound_has_none(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as film:
        video = film.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        film.mux(video.encode(frame))
        film.mux(video.encode())
    assert read_sound(str(path), 0.0, 1.0) is None
    assert read_subtitles(str(path)) is None


def test_a_real_film_has_sound(clips: Path) -> None:
    sound = read_sound(str(clips / "WolfgangLanger_Pexels.mp4"), 4.0, 6.0)
    assert sound is not None
    assert len(sound.span(4.0, 6.0)) == pytest.approx(2 * RATE, abs=RATE // 10)
    film = str(clips / "face_noface.mov")
    apart = read_sound(film, 2.0, 4.0)
    whole = read_sound(film, 0.0, float("inf"))
    assert apart is not None
    assert whole is not None
    ours, theirs = apart.span(2.5, 3.5).astype(float), whole.span(2.5, 3.5).astype(float)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99, "a segment's sound is the film's"


ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,16

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def subtitled(path: Path) -> Path:
    with av.open(str(path), "w") as film:
        video = film.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        stream = film.add_stream("srt")
        stream.codec_context.subtitle_header = ASS_HEADER
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        for k in range(50):
            frame.pts = k
            film.mux(video.encode(frame))
        film.mux(video.encode())
        for cue in CUES:
            packet = av.Packet(cue.text.encode())
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = round(cue.start_s * 1000)
            packet.duration = round((cue.end_s - cue.start_s) * 1000)
            film.mux(packet)
    return path


def test_a_subtitle_stream_is_a_transcript(tmp_path: Path) -> None:
    assert read_subtitles(str(subtitled(tmp_path / "subtitled.mkv"))) == CUES


def test_a_segment_reads_its_own_part_of_a_films_subtitles(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as film:
        video = film.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt, video.gop_size = 64, 48, "yuv420p", 5
        stream = film.add_stream("srt")
        stream.codec_context.subtitle_header = ASS_HEADER
        for k in range(600):
            noise = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            frame.pts = k
            film.mux(video.encode(frame))
            if k % 10 == 0:
                packet = av.Packet(f"word {k}".encode())
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packet.pts = packet.dts = k * 1000
                packet.duration = 4000
                film.mux(packet)
        film.mux(video.encode())
    whole = read_subtitles(str(path))
    assert whole is not None
    assert len(whole) == 60
    for start, end in ((0.0, 35.0), (302.0, 333.0), (590.0, float("inf"))):
        with Counting(path) as file:
            part = read_subtitles(file, start, end)
            assert part is not None
            assert said_in(part, start, end) == said_in(whole, start, end)
            assert file.read_bytes_ < path.stat().st_size / 2


class Counting(io.FileIO):
    """A file that counts what is read of it."""

    read_bytes_ = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.read_bytes_ += len(data)
        return data
