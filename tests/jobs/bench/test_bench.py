"""The benchmarks' own parts: what is measured against must be right. No time is asserted."""

import json
import subprocess
import sys

import cv2
import pytest

from emolake.jobs.bench.clips import loop_clip, resized_clip
from emolake.jobs.bench.faces import _quality
from emolake.jobs.bench.measurement import less_is_better, more_is_better
from emolake.jobs.bench.pipeline import advice
from emolake.jobs.bench.sheet import contact_sheet
from emolake.jobs.bench.truth import read_truth
from emolake.pipeline.errors import UserError
from emolake.pipeline.video.decode import probe
from tests.conftest import ROOT


def test_a_ratio_says_how_many_times_better_ours_is() -> None:
    assert more_is_better("speed", 6.0, 3.0, "x/s", 2.0).ok
    assert less_is_better("memory", 6.0, 3.0, "MB", 1.0).row()["ratio"] == 0.5
    assert not less_is_better("memory", 6.0, 3.0, "MB", 1.0).ok


def test_quality_against_the_truth_of_real_clips(clips) -> None:
    paths = [clips / "single_face.mp4", clips / "face_noface.mov"]
    rows = {m.name: m for m in _quality(paths, read_truth(None, paths))}
    assert rows["face-seconds found / in the truth"].ratio == pytest.approx(1.0, abs=0.06)
    assert rows["tracks / persons in their shots"].ours == 2
    assert rows["identity switches / none"].ours == 0


def test_a_wrong_truth_shows_in_the_figures(clips, tmp_path) -> None:
    path = clips / "single_face.mp4"
    told = json.loads((clips / "truth.json").read_text())
    (person,) = told["clips"][path.name]["tracks"]
    person["boxes"] = [[t, 0, 0, 40, 40] for t, *_ in person["boxes"]]
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(told))
    rows = {m.name: m for m in _quality([path], read_truth(moved, [path]))}
    assert rows["face-seconds found / in the truth"].ours == 0
    assert not rows["face-seconds that no person explains / all"].ok


def test_a_truth_file_that_is_none_is_a_user_mistake(tmp_path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(UserError, match="is no truth file"):
        read_truth(tmp_path / "bad.json", [tmp_path / "x.mp4"])


def test_the_contact_sheet_has_a_row_for_each_clip(demo_videos, tmp_path) -> None:
    sheet = tmp_path / "sheet.png"
    contact_sheet([demo_videos / "portrait.mp4", demo_videos / "no_face.mp4"], {}, sheet)
    assert cv2.imread(str(sheet)).shape == (400, 8 * 320, 3)
    with pytest.raises(UserError, match="cannot be written"):
        contact_sheet([demo_videos / "no_face.mp4"], {}, tmp_path / "none" / "sheet.png")


def test_clips_are_looped_and_resized_in_time(demo_videos, tmp_path) -> None:
    clip = demo_videos / "portrait.mp4"
    loop_clip(clip, tmp_path / "long.mp4", 20.0)
    resized_clip(clip, tmp_path / "small.mp4", 180)
    length = probe(str(clip)).duration_s
    assert probe(str(tmp_path / "long.mp4")).duration_s == pytest.approx(20.0, abs=0.1)
    small = probe(str(tmp_path / "small.mp4"))
    assert (small.width, small.height) == (320, 180)
    assert small.duration_s == pytest.approx(length, abs=0.1)


def run_record(faces: float, annotate: float, actors: int = 1) -> dict:
    return {
        "wall_seconds": 110.0,
        "start_seconds": 10.0,
        "stages": {
            "faces": {"busy_seconds": faces, "workers": actors},
            "annotate": {"busy_seconds": annotate, "workers": 1},
        },
    }


def test_advice_names_the_stage_that_bounds_and_the_knob() -> None:
    assert "resources.face_actors=4" in advice(run_record(95.0, 26.0))
    assert "resources.annotation_actors=2" in advice(run_record(60.0, 99.0))
    told = advice(run_record(20.0, 10.0))
    assert "busy 20 %" in told
    assert "waits for its input" in told


def test_the_annotation_bench_needs_neither_ray_nor_pyav() -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['av'] = None\n"
        "from argparse import Namespace\n"
        "from emolake.jobs.bench import annotate\n"
        "annotate._WINDOWS['tiny'] = 2\n"
        "rows = [m.row() for m in annotate.bench_annotate([], None, Namespace(shape='tiny', profile=None))]\n"
        "assert len(rows) == 10 and all(row['ours'] > 0 for row in rows), rows\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
