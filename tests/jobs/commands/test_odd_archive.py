"""One run over an archive of sixty odd files: each has its right outcome, and none costs another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Emolake, read_rows
from tests.pipeline.video.test_decode import sound_only
from tests.pipeline.video.test_odd_videos import VARIANTS, portrait
from tests.pipeline.video.test_odd_videos import film as still
from tests.pipeline.video.test_pictures import FRAMES, WAYS, film, squeezed

Maker = Callable[[Path], object]
_BLANK = np.full((16, 16, 3), 90, np.uint8)


def _bytes(content: bytes) -> Maker:
    return lambda path: path.write_bytes(content)


def _part(whole: str, begin: float, end: float) -> Maker:
    def write(path: Path) -> None:
        content = (path.parent / whole).read_bytes()
        path.write_bytes(content[int(begin * len(content)) : int(end * len(content))])

    return write


def _with_noise(whole: str) -> Maker:
    """Every hundredth byte of its middle half is another."""

    def write(path: Path) -> None:
        content = np.frombuffer((path.parent / whole).read_bytes(), np.uint8).copy()
        content[len(content) // 4 : 3 * len(content) // 4 : 100] ^= 255
        path.write_bytes(content.tobytes())

    return write


def _joined(path: Path) -> None:
    parts = [path.with_suffix(f".{width}.part.ts") for width in (480, 240)]
    for at, (part, width) in enumerate(zip(parts, (480, 240), strict=True)):
        small = squeezed(width, width * 4 // 5)
        film(part, small, first=at * FRAMES, g="5", bf="0", preset="ultrafast")
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()


WHOLE: dict[str, Maker] = {
    "plain.mp4": lambda path: film(path, crf="12"),
    "empty.mp4": _bytes(b""),
    "text.mp4": _bytes(b"this is a text\n" * 100),
    "page.webm": _bytes(b"<!doctype html><title>404</title>" * 50),
    "zeros.avi": _bytes(bytes(100_000)),
    "noise.mkv": _bytes(np.random.default_rng(0).bytes(100_000)),
    "picture.mp4": _bytes(b"\xff\xd8\xff\xe0" + bytes(3000)),
    "first_tenth.mp4": _part("plain.mp4", 0, 0.1),
    "last_half.mp4": _part("plain.mp4", 0.5, 1),
    "noisy.mp4": _with_noise("plain.mp4"),
    "sound.mp4": sound_only,
    "tiny.mp4": lambda path: still(path, [_BLANK] * 10),
    "huge.mp4": lambda path: still(path, [portrait(7680, 4320)] * 2, preset="ultrafast"),
    "changing.ts": _joined,
    "unsampled.mp4": lambda path: still(path, [portrait(320, 260)], rate=25),
}
"""Whole files and broken ones by name, in the order in which they are made."""
FAILED = {
    "empty.mp4": "not_a_video",
    "text.mp4": "not_a_video",
    "page.webm": "not_a_video",
    "zeros.avi": "not_a_video",
    "noise.mkv": "not_a_video",
    "picture.mp4": "decode_error",
    "first_tenth.mp4": "truncated",
    "last_half.mp4": "not_a_video",
    "sound.mp4": "no_video_stream",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for name, make in WHOLE.items():
        make(folder / name)
    for name, told in WAYS.items():
        way = dict(told)
        after, path = way.pop("after", None), folder / f"{name}{way.pop('suffix', '.mp4')}"
        film(path, **way)
        if after is not None:
            after(path)
    for name, told in VARIANTS.items():
        options: dict[str, Any] = dict(told)
        path = folder / f"still_{name}{options.pop('suffix')}"
        still(path, [portrait(480, 400)] * 25, **options)
    (folder / "no_video.mp4.txt").write_text("not looked at")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    return folder


def test_each_file_of_an_odd_archive_has_its_outcome(
    archive: Path, emolake: Emolake, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = emolake("annotate", archive, "--output", output, "--quiet")
    assert done.returncode == 0, done.stderr
    ledger = {Path(row["uri"]).name: row for row in read_rows(output, "videos")}
    files = {path.name for path in archive.iterdir() if path.is_file() and path.suffix != ".txt"}
    assert set(ledger) == files, "each once, and nothing else"
    assert len(files) >= 60
    reasons = {name: row["reason"] for name, row in ledger.items() if row["state"] == "failed"}
    assert reasons == FAILED
    assert {name for name, row in ledger.items() if row["state"] == "no_face"} == {
        "tiny.mp4",
        "noisy.mp4",
    }
    assert ledger["noisy.mp4"]["detail"] == "1 of its pictures are damaged"
    assert {name for name, row in ledger.items() if row["detail"]} == {*FAILED, "noisy.mp4"}
    told: dict[str, set[str]] = {}
    for row in read_rows(output, "annotations"):
        told.setdefault(Path(row["uri"]).stem, set()).add(row["emotion"])
    (emotion,) = told["plain"]
    assert {name: told.get(name) for name in WAYS} == {name: {emotion} for name in WAYS}
