"""Out to other tools and back: what a person changed there is a label here, at its own time."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from emolake.jobs.cli import main
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.labels import Labels
from emolake.pipeline.lake.layout import Lake
from tests.pipeline.lake.test_labels import say
from tests.pipeline.lake.test_lake import BOX, RUN, lake_at, no_fence, segment

FPS = 30000 / 1001


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """One video of two faces at a time, another of one, at the rate of American television."""
    lake = lake_at(tmp_path / "out")
    both = segment("both", windows=3, fps=FPS, duration_s=6.0)
    both["tracks"][0]["path"] = [
        {"time_s": t, "interpolated": False, **BOX} for t in (0.0, 3.0, 6.0)
    ]
    both["annotations"] += [row | {"track_id": 1} for row in both["annotations"]]
    both["tracks"].append(both["tracks"][0] | {"track_id": 1})
    commit_segments(lake, [both, segment("alone", windows=3, fps=FPS)], RUN, no_fence)
    return lake


def export(lake: Lake, video: str, option: str, file: Path) -> Path:
    assert main(["export", lake.uri, video, option, str(file)]) == 0
    return file


def taken(lake: Lake, file: Path, capsys, *more: str) -> dict:
    capsys.readouterr()
    assert main(["labels", lake.uri, "--from", str(file), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def said(lake: Lake) -> list[tuple]:
    return sorted(
        (row["video_id"], row["track_id"], row["window"], row["label"], row["reviewer"])
        for row in Labels.of(lake).standing()
    )


def test_label_studio_gets_frames_at_the_true_rate(lake: Lake, tmp_path: Path) -> None:
    (task,) = json.loads(
        export(lake, "both.mp4", "--label-studio", tmp_path / "t.json").read_text()
    )
    assert task["data"] == {"video": "/v/both.mp4", "fps": FPS, "video_id": "both"}
    (prediction,) = task["predictions"]
    regions = [r for r in prediction["result"] if r["type"] == "timelinelabels"]
    assert len(regions) == 6
    second = regions[1]["value"]["ranges"][0]
    assert second == {"start": round(2 * FPS) + 1, "end": round(4 * FPS)}, "the first frame is 1"
    box = next(r for r in prediction["result"] if r["type"] == "videorectangle")["value"]
    assert [point["frame"] for point in box["sequence"]] == [1, 91, 181]
    assert box["sequence"][0]["x"] == pytest.approx(100 * BOX["x1"], abs=1e-4)
    assert [point["enabled"] for point in box["sequence"]] == [True, True, False]


def test_label_studios_export_comes_back_as_labels(lake: Lake, tmp_path: Path, capsys) -> None:
    (task,) = json.loads(
        export(lake, "both.mp4", "--label-studio", tmp_path / "t.json").read_text()
    )
    result = task.pop("predictions")[0]["result"]
    result[1]["value"]["timelinelabels"] = ["Happy"]  # a window of the first face, seen otherwise
    drawn = {
        "id": "Zx1", "type": "timelinelabels",
        "value": {"ranges": [{"start": 1, "end": 60}], "timelinelabels": ["Sad"]},
    }  # fmt: skip
    task["annotations"] = [
        {"completed_by": {"email": "ann@lab.example"}, "result": result[:3]},
        {"completed_by": 2, "was_cancelled": True, "result": result},
    ]
    alone = {
        "data": {"video": "/v/alone.mp4"},  # nothing tells the rate: the video's own is taken
        "annotations": [{"completed_by": 7, "result": [drawn]}],
    }
    (tmp_path / "back.json").write_text(json.dumps([task, alone]))
    told = taken(lake, tmp_path / "back.json", capsys)
    assert (told["remarks"], told["stored"], told["missed"]) == (4, 4, 0)
    assert said(lake) == [
        ("alone", 0, 0, "sadness", "7"),
        ("both", 0, 0, "fear", "ann@lab.example"),
        ("both", 0, 1, "happiness", "ann@lab.example"),
        ("both", 0, 2, "fear", "ann@lab.example"),
    ]
    assert taken(lake, tmp_path / "back.json", capsys)["stored"] == 0, "once is enough"


def test_a_region_that_was_moved_or_stretched_is_of_its_time(
    lake: Lake, tmp_path: Path, capsys
) -> None:
    (task,) = json.loads(
        export(lake, "both.mp4", "--label-studio", tmp_path / "t.json").read_text()
    )
    moved, stretched = task.pop("predictions")[0]["result"][:2]
    moved["value"]["ranges"] = [{"start": 121, "end": 179}]
    stretched["value"] = {"ranges": [{"start": 1, "end": 119}], "timelinelabels": ["Sad"]}
    task["annotations"] = [{"completed_by": 7, "result": [moved, stretched]}]
    (tmp_path / "back.json").write_text(json.dumps([task]))
    assert taken(lake, tmp_path / "back.json", capsys)["stored"] == 3
    assert [(window, label) for _, _, window, label, _ in said(lake)] == [
        (0, "sadness"), (1, "sadness"), (2, "fear")
    ]  # fmt: skip


def test_what_was_corrected_since_is_not_said_again(lake: Lake, tmp_path: Path, capsys) -> None:
    file = tmp_path / "x.csv"
    file.write_text(
        "uri,start_s,end_s,label\nalone.mp4,0,2,anger\nalone.mp4,2,3,anger\nalone.mp4,3,4,fear\n"
    )
    assert taken(lake, file, capsys, "--reviewer", "ann")["stored"] == 2, "two of one window"
    say(lake, "alone", 0, label="sadness", revision=2)
    say(lake, "alone", 1, label=None, revision=2)
    assert taken(lake, file, capsys, "--reviewer", "ann")["stored"] == 0
    assert said(lake) == [("alone", 0, 0, "sadness", "ann")]


def test_a_short_name_is_a_files_and_no_videos_number(tmp_path: Path, capsys) -> None:
    lake = lake_at(tmp_path / "out")
    rows = [segment("1f00", uri="/v/2.mp4"), segment("ab12", uri="/v/1.mp4")]
    commit_segments(lake, rows, RUN, no_fence)
    file = tmp_path / "x.csv"
    file.write_text("uri,start_s,end_s,label\n1,0,2,anger\n")
    assert taken(lake, file, capsys)["stored"] == 1
    assert [row[0] for row in said(lake)] == ["ab12"]
    file.write_text("uri,start_s,end_s,label\n1f,0,2,anger\n")
    assert main(["labels", lake.uri, "--from", str(file)]) == 2


def test_a_span_over_two_faces_that_names_none_is_told_and_stored_for_none(
    lake: Lake, tmp_path: Path, capsys
) -> None:
    (tmp_path / "x.csv").write_text("uri,start_s,end_s,label\nboth.mp4,0,2,anger\n")
    told = taken(lake, tmp_path / "x.csv", capsys)
    assert (told["stored"], told["missed"]) == (0, 1)


def test_elan_comes_back_where_a_person_changed_it(lake: Lake, tmp_path: Path, capsys) -> None:
    file = export(lake, "both.mp4", "--elan", tmp_path / "both.eaf")
    document = ElementTree.parse(file)
    tiers = list(document.getroot().iter("TIER"))
    tiers[1].set("ANNOTATOR", "ann")
    list(tiers[1].iter("ANNOTATION_VALUE"))[2].text = "surprise"
    document.write(file)
    assert taken(lake, file, capsys)["stored"] == 1, "the model's own words are no labels"
    assert said(lake) == [("both", 1, 2, "surprise", "ann")]


def test_fiftyone_comes_back_where_a_person_said_it(lake: Lake, tmp_path: Path, capsys) -> None:
    file = export(lake, "both.mp4", "--fiftyone", tmp_path / "labels.json")
    told = json.loads(file.read_text())
    detections = told["labels"]["both"]
    assert detections[1]["timestamps"] == [2.0, 4.0]
    detections[1] |= {"label": "anger"}
    del detections[1]["confidence"]
    told["labels"]["alone"] = [{"label": "neutral", "support": [61, 120]}]
    file.write_text(json.dumps(told))
    assert taken(lake, file, capsys, "--reviewer", "bo")["stored"] == 2
    assert said(lake) == [("alone", 0, 1, "neutral", "bo"), ("both", 0, 1, "anger", "bo")]


def test_csv_comes_back_with_a_column_filled_in(lake: Lake, tmp_path: Path, capsys) -> None:
    file = export(lake, "both.mp4", "--csv", tmp_path / "both.csv")
    rows = list(csv.DictReader(file.open()))
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*rows[0], "label", "reviewer"])
        writer.writeheader()
        writer.writerows(
            row | {"label": "not a face" if k == 4 else "", "reviewer": "cy"}
            for k, row in enumerate(rows)
        )
    assert taken(lake, file, capsys)["stored"] == 1
    assert said(lake) == [("both", 1, 1, "not a face", "cy")]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.txt", "", ".json, .eaf, .csv, .jsonl"),
        ("x.json", "[1]", "cannot be read"),
        ("x.json", "{", "cannot be read"),
        ("x.json", "{}", "it has no 'labels'"),
        ("x.eaf", "<a", "cannot be read"),
        ("x.csv", "uri,label\nboth.mp4,anger\n", "it has no 'start_s'"),
        ("x.csv", "uri,start_s,end_s,label\nboth.mp4,0,2,hungry\n", "no label"),
        ("x.csv", "uri,start_s,end_s,label\nnobody.mp4,0,2,anger\n", "holds no video"),
        ("x.json", '[{"data": {"video": "both.mp4", "fps": 0}, "annotations": [{"result": '
         '[{"type": "timelinelabels", "value": {}}]}]}]', "it has no"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_in_is_one_line_and_nothing_is_stored(
    lake: Lake, tmp_path: Path, name: str, text: str, told: str, capsys
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["labels", lake.uri, "--from", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert Labels.of(lake).rows == {}
