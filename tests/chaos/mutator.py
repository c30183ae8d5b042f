"""Damaged and odd videos, made from real ones: the same seed makes the same files."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from tests.pipeline.video.test_decode import sound_only
from tests.pipeline.video.test_odd_videos import film, portrait

Mutation = Callable[[bytes, random.Random], bytes]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 10, 200])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def header_flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the index (moov), where sizes and offsets are."""
    at = max(data.find(b"moov"), 0)
    out = bytearray(data)
    for _ in range(rng.choice([1, 4, 16])):
        out[rng.randrange(at, min(at + 1500, len(out)))] = rng.randrange(256)
    return bytes(out)


def dropped(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 5000) :]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.randrange(1, 20_000)
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def swapped(data: bytes, rng: random.Random) -> bytes:
    """Top-level boxes in another order, their contents whole (ISO/IEC 14496-12, 4.2)."""
    boxes, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:
            break
        boxes.append(data[at : at + size])
        at += size
    rng.shuffle(boxes)
    return b"".join(boxes)


def absurd_sizes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    name = rng.choice([b"tkhd", b"stsz", b"stco", b"stts", b"mdhd", b"avc1", b"stsc"])
    at = data.find(name)
    for _ in range(3):
        spot = at + rng.randrange(4, 90)
        if at >= 0 and spot + 4 <= len(out):
            struct.pack_into(">I", out, spot, rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 1 << 30, 0]))
    return bytes(out)


def doubled(data: bytes, rng: random.Random) -> bytes:
    return data + data[rng.randrange(len(data)) :]


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([1, 16, 5000]))


MUTATIONS: list[Mutation] = [
    truncated, flipped, header_flipped, dropped, zeroed, swapped, absurd_sizes, doubled, noise,
]  # fmt: skip


def damaged_corpus(clips: list[Path], folder: Path, count: int, seed: int = 0) -> list[Path]:
    """`count` mutated files and some two dozen odd ones; all of them named like videos."""
    folder.mkdir()
    rng = random.Random(seed)
    paths = []
    for k in range(count):
        clip = rng.choice(clips)
        mutation = MUTATIONS[k % len(MUTATIONS)]
        suffix = rng.choice([clip.suffix] * 4 + [".mkv", ".avi", ".ts"])
        paths.append(folder / f"{k:03d}_{mutation.__name__}{suffix}")
        paths[-1].write_bytes(mutation(clip.read_bytes(), rng))
    return paths + odd_files(folder)


def odd_files(folder: Path) -> list[Path]:
    """Whole files that are not what a video usually is."""
    face = portrait(160, 130)
    few = [face] * 12
    paths = [
        film(folder / "odd_ten_bit.mkv", few, codec="ffv1", pix_fmt="yuv420p10le"),
        film(folder / "odd_one_frame.mp4", [face]),
        film(folder / "odd_tiny.mp4", [face[:2, :2].copy()] * 4),
        film(folder / "odd_width.mkv", [face[:, :159].copy()] * 4, codec="ffv1", pix_fmt="yuv444p"),
        film(folder / "odd_gray.mkv", few, codec="ffv1", pix_fmt="gray"),
        film(folder / "odd_alpha.mov", few, codec="png", pix_fmt="rgba"),
        film(folder / "odd_gif.gif.mp4", few),
        sound_only(folder / "odd_sound.mp4"),
        _variable_rate(folder / "odd_variable.mkv"),
        _two_streams(folder / "odd_two_streams.mkv"),
    ]
    for name, data in {
        "odd_empty.mp4": b"",
        "odd_text.mp4": b"dear diary\n" * 90,
        "odd_zeros.mp4": bytes(4096),
        "odd_html.mp4": b"<html><body>403 Forbidden</body></html>",
    }.items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    for name in ("odd_still.jpg", "odd_still.png"):
        still = folder / name
        cv2.imwrite(str(still), np.ascontiguousarray(face[..., ::-1]))
        paths.append(still.rename(folder / f"{name}.mp4"))
    return paths


def _variable_rate(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 130, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for pts in (0, 10, 500, 501, 2000, 2001, 3700):
            frame = av.VideoFrame.from_ndarray(portrait(160, 130), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def _two_streams(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        streams: list[Any] = [out.add_stream("ffv1", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 160, 130, "yuv420p"
        for _ in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(portrait(160, 130), format="rgb24")
                out.mux(stream.encode(frame.reformat(format="yuv420p")))
        for stream in streams:
            out.mux(stream.encode())
    return path
