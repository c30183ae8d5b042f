"""File names as archives have them, and manifests that point anywhere."""

import json
import os
from pathlib import Path

import pytest

from emolake.jobs.cli import main
from tests.conftest import Emolake, read_rows
from tests.pipeline.video.test_odd_videos import film, portrait

NAMES = [
    "plain.mp4",
    "with space and 'quotes\".mp4",
    "ünïcode 🎬 日本.mp4",
    "two..dots...mp4",
    "new\nline\tand\x1bescape.mp4",
    "percent%20%2e%2e#frag?query=1.mp4",
    "[glob]*{a,b}.mp4",
    "x" * 240 + ".mp4",
]


@pytest.fixture(scope="module")
def one_film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = film(tmp_path_factory.mktemp("film") / "film.mp4", [portrait(320, 260)] * 30)
    return path.read_bytes()


def test_any_file_name_is_annotated_and_found_again(
    one_film: bytes, emolake: Emolake, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in NAMES:
        (corpus / name).write_bytes(one_film)
    raw = os.fsencode(str(corpus)) + b"/latin\xe9.mp4"
    Path(os.fsdecode(raw)).write_bytes(one_film)
    done = emolake("annotate", corpus, "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out", "videos")
    states = {Path(r["uri"]).name: r["state"] for r in rows}
    assert states[r"latin\udce9.mp4"] == "failed", "no UTF-8 name, but a row"
    assert {name: states.get(name) for name in NAMES} == dict.fromkeys(NAMES, "annotated")
    assert len(rows) == len(NAMES) + 1
    again = emolake("annotate", corpus, "--output", tmp_path / "out", "--json")
    assert json.loads(again.stdout)["videos"]["skipped"] == len(NAMES) + 1


def test_a_manifest_may_point_up_and_at_nothing(
    one_film: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "a.mp4").write_bytes(one_film)
    uris = ["../a.mp4", "../lists/../a.mp4", "y" * 1000, "nosuch://x/y.mp4", "\x00.mp4", ""]
    manifest = tmp_path / "lists" / "m.jsonl"
    manifest.write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in uris))
    quietly = ("--json", "--quiet")
    assert main(["plan", str(manifest), "--output", str(tmp_path / "out"), *quietly]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["videos"]["total"] == len(uris) - 1, "two ways to one file are one video"
