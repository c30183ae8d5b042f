"""`emolake labels`: what people said, as a table that evaluate, measure and tune read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emolake.jobs.cli import main
from emolake.pipeline.evaluation.agreement import agreement
from emolake.pipeline.evaluation.labelled import LabelledTable, of_face
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.layout import Lake
from tests.pipeline.lake.test_labels import say
from tests.pipeline.lake.test_lake import BOX, RUN, lake_at, no_fence, segment


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = lake_at(tmp_path / "out")
    commit_segments(lake, [segment("a", windows=6)], RUN, no_fence)
    for window, (ann, bo) in enumerate(
        [
            ("fear", "fear"), ("anger", "fear"), ("anger", "anger"),
            ("cannot tell", "not a face"), ("sadness", "cannot tell"),
        ]
    ):  # fmt: skip
        say(lake, window=window, label=ann)
        say(lake, window=window, label=bo, reviewer="bo")
    say(lake, window=5, label="fear", reviewer="cy")
    say(lake, window=5, label="behind a hand", kind="note")
    return lake


def exported(lake: Lake, file: Path, capsys, *more: str) -> dict:
    assert main(["labels", lake.uri, "--output", str(file), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_most_votes_make_the_label_and_all_are_told(lake: Lake, tmp_path: Path, capsys) -> None:
    told = exported(lake, tmp_path / "labels.parquet", capsys)
    assert (told["windows"], told["split"], told["no_emotion"]) == (4, 1, 2)
    assert told["reviewers"] == {"ann": 5, "bo": 5, "cy": 1}
    rows = pq.read_table(tmp_path / "labels.parquet").to_pylist(maps_as_pydicts="strict")
    assert [(r["window"], r["label"]) for r in rows if r["window"] != 1] == [
        (0, "fear"),
        (2, "anger"),
        (5, "fear"),
    ]
    assert rows[1]["label"] in rows[1]["votes"], "of as many votes chance takes one"
    assert rows[0]["bbox"] == pytest.approx(BOX)
    assert rows[1]["votes"] == {"anger": 1, "fear": 1}
    assert rows[3]["notes"] == ["behind a hand"]
    assert (rows[2]["uri"], rows[2]["start_s"], rows[2]["end_s"]) == ("/v/a.mp4", 4.0, 6.0)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_each_kind_of_file_is_a_labelled_table(
    lake: Lake, tmp_path: Path, suffix: str, capsys
) -> None:
    file = tmp_path / f"labels{suffix}"
    exported(lake, file, capsys)
    table = LabelledTable.read(file)
    first, _, *others = table.label_indices(("anger", "fear"))
    assert [first, *others] == [1, 0, 1]
    assert table.boxes() == [pytest.approx(BOX)] * 4
    votes = table.votes(("anger", "fear"))
    assert votes is not None
    assert votes.shares.tolist() == [[0, 1], [0.5, 0.5], [1, 0], [0, 1]]
    assert main(["measure", lake.uri, "--labels", str(file), "--json"]) == 0
    fear = next(e for e in json.loads(capsys.readouterr().out) if e["emotion"] == "fear")
    assert fear["n_labels"] == 4


def test_an_output_is_scored_against_them_window_by_window(
    lake: Lake, tmp_path: Path, capsys
) -> None:
    file = tmp_path / "labels.csv"
    exported(lake, file, capsys)
    arguments = ["evaluate", "--output", lake.uri, "--labels", str(file), "--json"]
    assert main([*arguments, "--label-set", "fer2013"]) == 0
    told = json.loads(capsys.readouterr().out)
    afraid = [row["label"] for row in csv.DictReader(file.open())].count("fear")
    assert (told["n"], told["war"]) == (4, afraid / 4), "the model said fear each time"


def test_the_face_that_was_labelled_is_found_again_among_others() -> None:
    def at(left: float, track: int, **more: object) -> dict:
        return {"bbox": BOX | {"x1": left, "x2": left + 0.2}, "track_id": track, **more}

    windows = [at(0.0, 4, window=0), at(0.5, 7, window=0), at(0.52, 7, window=1)]
    assert of_face(windows, at(0.49, 0)["bbox"]) == windows[1:]
    assert of_face(windows, at(0.03, 0)["bbox"]) == windows[:1]
    assert of_face(windows, at(0.8, 0)["bbox"]) == [], "nobody is there"
    assert of_face(windows, None) == windows
    assert of_face([], BOX) == []


def test_parts_share_the_windows_out(lake: Lake, tmp_path: Path, capsys) -> None:
    parts = ("0:30", "30:60", "60:100")
    found = []
    for part in parts:
        file = tmp_path / f"{part}.parquet"  # a colon makes no URI of it
        if main(["labels", lake.uri, "--output", str(file), "--part", part]) == 0:
            found += pq.read_table(file)["window"].to_pylist()
        else:
            assert f"has no labels in part {part}" in capsys.readouterr().err
    assert sorted(found) == [0, 1, 2, 5]


def test_one_reviewer_alone_can_be_asked_for(lake: Lake, tmp_path: Path, capsys) -> None:
    told = exported(lake, tmp_path / "bo.csv", capsys, "--reviewer", "bo")
    assert told["reviewers"] == {"bo": 5}
    assert told["agreement"] == {"pairs": [], "alpha": None}
    with (tmp_path / "bo.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["fear", "fear", "anger"]


def test_agreement_is_that_of_the_textbook() -> None:
    """alpha = 1 - (n - 1) o / (n0 n1): of 20 values 14 and 6, four pairs apart, 0.095; and Cohen's kappa of
    20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: 0.40."""
    said = [("a", k, x) for k, x in enumerate("0100000000")]
    said += [("b", k, x) for k, x in enumerate("1110010010")]
    assert agreement(said)["alpha"] == pytest.approx(0.095, abs=5e-4)
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    said = [(who, k, pair[n]) for k, pair in enumerate(pairs) for n, who in enumerate("ab")]
    assert agreement(said)["pairs"][0]["kappa"] == pytest.approx(0.40, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output", "labels.xlsx"], ".parquet, .csv, .jsonl"),
        (["--output", "no/such/folder/labels.csv"], "cannot be written"),
        (["--output", "labels.csv", "--reviewer", "nobody"], "no labels of nobody"),
    ],
)
def test_mistakes_are_one_line(
    lake: Lake, tmp_path: Path, monkeypatch, arguments: list[str], told: str, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["labels", lake.uri, *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
