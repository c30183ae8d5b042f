"""One annotated video for people: overlay, stills, files for annotation tools."""

import csv
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from emolake.jobs.cli import main
from emolake.pipeline.config import DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.corpus.listing import find_videos
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.faces.stage import FaceStage, make_detector
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.presentation.export.overlay import drawn_on, painter
from emolake.pipeline.presentation.export.story import Story, face_of, read_story
from emolake.pipeline.presentation.palette import rgb
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.video.decode import Ending, sampled_frames
from emolake.pipeline.video.transcode import transcode
from tests.conftest import read_rows
from tests.pipeline.lake.test_lake import RUN, lake_at, no_fence, segment
from tests.pipeline.video.test_odd_videos import film, portrait


def windows_of(output: Path, name: str) -> list[dict]:
    rows = read_rows(output, "annotations")
    return sorted(
        (r for r in rows if Path(r["uri"]).name == name), key=lambda r: (r["track_id"], r["window"])
    )


def test_files_for_annotation_tools_hold_every_window(demo_output: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"x.{name}" for name in ("csv", "elan", "vtt")}
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    assert main(["export", str(demo_output), "portrait.mp4", *options]) == 0
    wanted = windows_of(demo_output, "portrait.mp4")
    rows = list(csv.DictReader(files["csv"].open()))
    assert [r["emotion"] for r in rows] == [w["emotion"] for w in wanted]
    scores = [float(v) for k, v in rows[0].items() if k.startswith("score_")]
    assert sum(scores) == pytest.approx(1.0, abs=1e-3)
    document = ElementTree.parse(files["elan"]).getroot()
    slots = {s.get("TIME_SLOT_ID"): s.get("TIME_VALUE") for s in document.iter("TIME_SLOT")}
    told = [
        (slots[a.get("TIME_SLOT_REF1")], slots[a.get("TIME_SLOT_REF2")])
        for a in document.iter("ALIGNABLE_ANNOTATION")
    ]
    assert told == [
        (str(round(w["start_s"] * 1000)), str(round(w["end_s"] * 1000))) for w in wanted
    ]
    assert [t.get("TIER_ID") for t in document.iter("TIER")] == ["face 0.0"]
    cues = files["vtt"].read_text().split("\n\n")
    assert cues[0] == "WEBVTT"
    assert len(cues) == len(wanted) + 1
    assert cues[1].startswith("00:00:00.000 --> 00:00:02.000\nface 0.0: happiness")


def test_the_overlay_has_every_frame_at_its_time(demo_output: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.mp4"
    assert main(["export", str(demo_output), "portrait.mp4", "--video", str(drawn)]) == 0
    (uri,) = {w["uri"] for w in windows_of(demo_output, "portrait.mp4")}
    with av.open(uri) as ours, av.open(str(drawn)) as theirs:
        times = [[f.time for f in c.decode(video=0)] for c in (ours, theirs)]
    assert times[1] == pytest.approx(times[0], abs=1e-3)


def test_the_box_is_drawn_where_the_table_says_and_in_the_colour_of_the_emotion(
    demo_output: Path,
) -> None:
    story = read_story(str(demo_output), "portrait.mp4")
    (face,) = story.faces
    blank = np.full((360, 640, 3), 128, np.uint8)
    picture = drawn_on(blank, story, 3.0)
    placed = face.box(3.0)
    window = face.window(3.0)
    assert placed is not None
    assert window is not None
    (x1, y1, x2, y2), bridged = placed[0] * (640, 360, 640, 360), placed[1]
    assert not bridged
    shade = np.array(rgb(window["emotion"]))
    for x, y in (((x1 + x2) / 2, y2), (x2, (y1 + y2) / 2)):
        patch = picture[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].astype(int)
        assert (np.abs(patch - shade).max(-1) == 0).any()
    assert (drawn_on(blank, story, story.duration_s + 1)[:300] == 128).all()


def test_sound_is_kept(clips: Path, demo_output: Path, tmp_path: Path) -> None:
    story = read_story(str(demo_output), "portrait.mp4")
    for name, codec in (("single_face.mp4", "mp3"), ("WolfgangLanger_Pexels.mp4", "aac")):
        target = tmp_path / name
        assert transcode(str(clips / name), target, painter(story)) > 50
        with av.open(str(clips / name)) as ours, av.open(str(target)) as theirs:
            assert theirs.streams.audio[0].codec_context.codec.canonical_name == codec
            lengths = [sum(f.samples for f in c.decode(audio=0)) for c in (ours, theirs)]
        assert lengths[1] == pytest.approx(lengths[0], abs=4096)


def faces_of(path: Path) -> list[int]:
    """How many faces MTCNN is sure of in each frame."""
    detector = make_detector(FacesConfig())
    with av.open(str(path)) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    found = [faces for k in range(0, len(pictures), 8) for faces in detector(pictures[k : k + 8])]
    return [int((faces.scores >= FacesConfig().min_score).sum()) for faces in found]


def test_with_blurred_faces_a_detector_finds_none_in_any_frame(
    demo_output: Path, tmp_path: Path
) -> None:
    plain, safe = tmp_path / "plain.mp4", tmp_path / "safe.mp4"
    for path, more in ((plain, []), (safe, ["--blur-faces", "--no-sound"])):
        asked = ["export", str(demo_output), "portrait.mp4", "--video", str(path), "--no-overlay"]
        assert main([*asked, *more]) == 0
    assert set(faces_of(plain)) == {1}
    assert set(faces_of(safe)) == {0}


def test_faces_that_move_and_hide_for_a_while_are_blurred_all_the_while(tmp_path: Path) -> None:
    walkers = film(tmp_path / "walkers.mp4", [walking(k) for k in range(95)])
    safe = tmp_path / "safe.mp4"
    stage = FaceStage(FacesConfig(), WindowsConfig(), Needs(), 4.0)
    found = stage(sampled_frames(str(walkers), DecodeConfig(), 0.0, math.inf, Ending()))
    assert found.n_dropped_tracks == 0
    faces = [face_of(track | {"segment": 0}, []) for track in found.tracks]
    story = Story("v", str(walkers), found.seen_s, faces, whole=True)
    assert transcode(str(walkers), safe, painter(story, overlay=False, blur=True)) == 95
    assert max(faces_of(walkers)) == 2
    assert set(faces_of(safe)) == {0}


def walking(k: int) -> NDArray[np.uint8]:
    """Two people who cross the picture; one passes behind a pillar."""
    picture = np.full((360, 640, 3), (70, 90, 110), np.uint8)
    for left, top in ((20 + 3 * k, 20), (500 - 3 * k, 200)):
        picture[top : top + 140, left : left + 120] = portrait(120, 140)
    picture[180:, 280:340] = 40
    return picture


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, True),
        ({"n_segments": 2}, False),
        ({"n_dropped_tracks": 1}, False),
        ({"failed": True, "reason": "timeout", "annotations": [], "tracks": []}, False),
        ({"video_id": "of another file at the same place"}, False),
    ],
)
def test_of_a_video_that_was_not_analysed_whole_as_it_is_nothing_is_shown(
    tmp_path: Path, capsys, changes: dict[str, Any], shown: bool
) -> None:
    lake = lake_at(tmp_path / "out")
    clip = film(tmp_path / "talk.mp4", [walking(k) for k in range(5)])
    (there,) = find_videos([str(clip)], Storage())
    row = segment("5eed00aa", uri=str(clip), video_id=there["video_id"][0].as_py())
    row["tracks"][0]["path"] = [
        {"time_s": 0.0, "interpolated": False} | row["tracks"][0]["mean_box"]
    ]
    commit_segments(lake, [row | changes], RUN, no_fence)
    target = tmp_path / "safe.mp4"
    asked = ["export", lake.uri, "talk", "--video", str(target), "--blur-faces", "--no-overlay"]
    assert main(asked) == 0
    assert ("blurred is all" in capsys.readouterr().out) is not shown
    with av.open(str(target)) as told:
        pictures = [frame.to_ndarray(format="gray") for frame in told.decode(video=0)]
    assert {bool(cv2.Laplacian(p, cv2.CV_64F).std() > 10) for p in pictures} == {shown}


def test_a_raw_stream_is_blurred_and_written_by_the_times_its_analysis_had(tmp_path: Path) -> None:
    """Its frames tell no time."""
    raw = tmp_path / "camera.mp4"
    made = film(tmp_path / "camera.h264", [walking(k) for k in range(50)], bf="0")
    made.rename(raw)
    stage = FaceStage(FacesConfig(), WindowsConfig(), Needs(), 4.0)
    found = stage(sampled_frames(str(raw), DecodeConfig(), 0.0, math.inf, Ending()))
    faces = [face_of(track | {"segment": 0}, []) for track in found.tracks]
    story = Story("v", str(raw), found.seen_s, faces, whole=True)
    safe = tmp_path / "safe.mp4"
    assert transcode(str(raw), safe, painter(story, overlay=False, blur=True)) == 50
    assert set(faces_of(safe)) == {0}
    with av.open(str(safe)) as told:
        times = [frame.time for frame in told.decode(video=0)]
    assert times == pytest.approx(np.arange(50) / 25, abs=0.01)


def test_sound_is_left_out_where_that_is_asked_for(clips: Path, tmp_path: Path) -> None:
    target = tmp_path / "silent.mp4"
    transcode(str(clips / "single_face.mp4"), target, lambda picture, _: picture, sound=False)
    with av.open(str(target)) as film:
        assert [stream.type for stream in film.streams] == ["video"]


def test_stills_show_the_middle_of_each_window(demo_output: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "stills"
    arguments = ["export", str(demo_output), "portrait.mp4", "--frames", str(folder), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["stills"] == 3
    pictures = sorted(folder.iterdir())
    assert [p.name for p in pictures] == [f"0000{t}.000_face0.0.png" for t in (1, 3, 5)]
    assert cv2.imread(str(pictures[0])).shape == (360, 640, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("{o} portrait.mp4", "give --video"),
        ("{o} nobody.mp4 --csv {t}/x.csv", "holds no video 'nobody.mp4'"),
        ("{t} portrait.mp4 --csv {t}/x.csv", "holds no run"),
        ("{o} portrait.mp4 --csv {t}/none/x.csv", "cannot be written"),
        ("{o} portrait.mp4 --csv {t}/x.csv --blur-faces", "go with --video or --frames"),
        ("{o} portrait.mp4 --frames {t}/x --no-sound", "goes with --video"),
        ("{o} portrait.mp4 --video {t}/x.webm", "name a .mp4"),
        ("{o} portrait.mp4 --video {t}/none/x.mp4", "cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    demo_output: Path, tmp_path: Path, capsys, arguments: str, told: str
) -> None:
    given = arguments.format(o=demo_output, t=tmp_path).split()
    assert main(["export", *given]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["talk.mp4", "talk", "5eed00"])
def test_an_ambiguous_name_lists_what_it_may_mean(tmp_path: Path, capsys, name: str) -> None:
    lake = lake_at(tmp_path / "out")
    twins = {"5eed00aa": "/v/monday/talk.mp4", "5eed00bb": "/v/friday/talk.mp4"}
    others = {"5eed11cc": "/v/friday/talks.mp4"}
    rows = [segment(video_id, uri=uri) for video_id, uri in (twins | others).items()]
    commit_segments(lake, rows, RUN, no_fence)
    assert main(["export", lake.uri, name, "--csv", str(tmp_path / "x.csv")]) == 2
    error = capsys.readouterr().err
    assert f"{name!r} means 2 videos" in error
    assert all(f"{uri} ({video_id})" in error for video_id, uri in twins.items())


@pytest.mark.parametrize("name", ["", "5", "5eed0"])
def test_a_few_letters_name_no_video_by_its_id(tmp_path: Path, capsys, name: str) -> None:
    lake = lake_at(tmp_path / "out")
    commit_segments(lake, [segment("5eed00aa", uri="/v/talk.mp4")], RUN, no_fence)
    assert main(["export", lake.uri, name, "--csv", str(tmp_path / "x.csv")]) == 2
    assert f"holds no video {name!r}" in capsys.readouterr().err
