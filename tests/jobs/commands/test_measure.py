"""`emolake measure`: draw windows, label them, and the archive's shares are known with honest intervals."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from emolake.jobs.cli import main
from emolake.pipeline.evaluation.measuring import Output, draw_name, draw_windows
from emolake.pipeline.lake.commit import commit_segments
from tests.pipeline.lake.test_labels import say
from tests.pipeline.lake.test_lake import RUN, lake_at, no_fence, segment

VIDEOS, WINDOWS = 60, 20


def truth_of(video: int, window: int) -> str:
    """Two thirds of the windows are neutral, a third happy; in the other corpus it is the other way."""
    happy = (video * 7 + window * 5) % 3 == 0
    return "happiness" if happy is (video % 2 == 0) else "neutral"


def seconds_of(video: int, window: int) -> float:
    """Happy faces show for half as long."""
    return 1.0 if truth_of(video, window) == "happiness" else 2.0


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes half of the neutral faces for sad ones: half of the windows are neutral, and two
    thirds of the time."""
    folder = tmp_path_factory.mktemp("measured")
    commit_segments(lake_at(folder), [row_of(video) for video in range(VIDEOS)], RUN, no_fence)
    return folder


def row_of(video: int) -> dict:
    random = np.random.default_rng(video)
    row = segment(f"{video}", windows=WINDOWS, corpus="even" if video % 2 == 0 else "odd")
    for window, annotation in enumerate(row["annotations"]):
        said = truth_of(video, window)
        if said == "neutral" and random.random() < 0.5:
            said = "sadness"
        others = dict.fromkeys(("joy", "neutral", "sadness"), 0.1)
        own = "joy" if said == "happiness" else said  # as EmoLLMs call it
        end = annotation["start_s"] + seconds_of(video, window)
        scores = list((others | {own: 0.8}).items())
        annotation |= {"emotion": own, "confidence": 0.8, "scores": scores, "end_s": end}
    spoken = row["annotations"][0] | {"track_id": -1, "emotion": "anger"}
    row["annotations"].append(spoken)
    return row


def measured(capsys, output: Path, *arguments: object) -> list[dict]:
    assert main(["measure", str(output), *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def labelled(output: Path, file: Path, *arguments: object) -> Path:
    """An audit as a person fills it in who sees what is there."""
    assert main(["measure", str(output), "--audit", str(file), *map(str, arguments)]) == 0
    rows = list(csv.DictReader(file.open()))
    for row in rows:
        video = int(Path(row["uri"]).stem)
        row["label"] = truth_of(video, int(row["window"])).replace("happiness", "Happy")
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def of(entries: list[dict], emotion: str, **group: str) -> dict:
    wanted = {"emotion": emotion} | group
    (entry,) = [e for e in entries if all(e[name] == value for name, value in wanted.items())]
    return entry


def test_an_audit_of_a_few_finds_the_shares_that_counting_misses(
    output: Path, tmp_path: Path, capsys
) -> None:
    audit = labelled(output, tmp_path / "audit.csv", "--draw", 200)
    capsys.readouterr()
    told = measured(capsys, output, "--labels", audit)
    neutral, sad = of(told, "neutral"), of(told, "sadness")
    assert neutral["naive"] < 0.4
    assert neutral["low"] < 2 / 3 < neutral["high"], "by time, and not by windows"
    assert neutral["low"] > 0.5
    assert neutral["high"] - neutral["low"] < 0.16
    assert (sad["estimate"], sad["naive"] > 0.3) == (0.0, True)
    assert (neutral["n_windows"], neutral["n_labels"]) == (VIDEOS * WINDOWS, 200)
    assert neutral["recall"] == pytest.approx(0.5, abs=0.15)
    assert (neutral["precision"], sad["precision"]) == (1.0, 0.0)
    happy = of(told, "happiness")
    assert happy["worth"] > 2 * happy["n_labels"], "where the model is right it saves labels"
    assert happy["audit_high"] - happy["audit_low"] > happy["high"] - happy["low"]
    assert sum(entry["naive"] for entry in told) == pytest.approx(1.0)
    assert "anger" not in {entry["emotion"] for entry in told}, "what is said has no face"


def test_what_a_model_learnt_from_is_kept_apart_from_what_it_is_measured_by(
    output: Path, tmp_path: Path, capsys
) -> None:
    audit = labelled(output, tmp_path / "audit.csv", "--draw", 300)
    capsys.readouterr()
    parts = [
        measured(capsys, output, "--labels", audit, "--part", part)
        for part in ("0:60", "60:72.5", "72.5:100")
    ]
    n = [of(told, "neutral")["n_labels"] for told in parts]
    assert sum(n) == 300
    assert n[0] == pytest.approx(180, abs=30)
    whole = of(measured(capsys, output, "--labels", audit), "neutral")
    for told in parts:
        neutral = of(told, "neutral")
        assert neutral["low"] < 2 / 3 < neutral["high"], "of the whole output"
        assert (neutral["naive"], neutral["n_windows"]) == (whole["naive"], whole["n_windows"])
        assert neutral["high"] - neutral["low"] > whole["high"] - whole["low"]
    apart = tmp_path / "apart.csv"
    arguments = ["--draw", "9999", "--audit", str(apart), "--part", "60:72.5"]
    assert main(["measure", str(output), *arguments]) == 0
    drawn = [(row["uri"], row["window"]) for row in csv.DictReader(apart.open())]
    asked = {(row["uri"], row["window"]) for row in csv.DictReader(audit.open())}
    assert len(asked & set(drawn)) == n[1]
    capsys.readouterr()
    for told, asked_for in [
        (["--part", "70:60"], "--part 70:60: say from which to which percent"),
        (["--part", "0:101"], "--part 0:101: say from which"),
        (["--part", "learn"], "--part learn: say from which"),
        (["--part", "0:60", "--unit", "video", "--labels", str(audit)], "drawn as whole videos"),
    ]:
        assert main(["measure", str(output), *told]) == 2
        assert asked_for in capsys.readouterr().err


def test_groups_are_measured_apart(output: Path, tmp_path: Path, capsys) -> None:
    audit = labelled(output, tmp_path / "audit.csv", "--draw", 300)
    capsys.readouterr()
    told = measured(capsys, output, "--labels", audit, "--by", "corpus,date")
    even, odd = (of(told, "neutral", corpus=corpus) for corpus in ("even", "odd"))
    assert 0.7 < even["low"] < 0.8 < even["high"]
    assert odd["low"] < 0.5 < odd["high"] < 0.6
    assert even["date"] == "2026-01-31"
    assert even["n_labels"] + odd["n_labels"] == 300
    assert main(["measure", str(output), "--labels", str(audit), "--by", "corpus"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "corpus"
    assert any(line.startswith("even") and "neutral" in line for line in lines)


def test_without_labels_answers_are_counted_and_said_to_be(output: Path, capsys) -> None:
    assert main(["measure", str(output), "--json"]) == 0
    out, error = capsys.readouterr()
    assert {entry["estimate"] for entry in json.loads(out)} == {None}
    assert "no labels" in error


def test_a_seed_draws_the_same_again_and_more_goes_on_from_there(
    output: Path, tmp_path: Path
) -> None:
    def drawn(name: str, *arguments: str) -> list[dict]:
        file = tmp_path / name
        assert main(["measure", str(output), "--audit", str(file), *arguments]) == 0
        return list(csv.DictReader(file.open()))

    few, more = drawn("a.csv", "--draw", "50"), drawn("b.csv", "--draw", "80")
    assert more[:50] == few
    assert drawn("c.csv", "--draw", "50", "--seed", "1") != few
    assert len({(row["uri"], row["window"]) for row in more}) == 80
    of_each = Counter(row["uri"] for row in more)
    assert len(of_each) > 35, "windows are drawn one by one"
    whole = drawn("d.csv", "--draw", "3", "--unit", "video")
    assert len(whole) == 3 * WINDOWS
    assert {row["unit"] for row in whole} == {"video"}
    names = list(dict.fromkeys(row["uri"] for row in whole))
    assert len(names) == 3
    assert (
        names
        == list(dict.fromkeys(r["uri"] for r in drawn("e.csv", "--draw", "9", "--unit", "video")))[
            :3
        ]
    )
    assert {(row["drawn_from"], row["seed"]) for row in whole} == {(str(VIDEOS), "0")}


def test_an_audit_by_videos_counts_videos(output: Path, tmp_path: Path, capsys) -> None:
    audit = labelled(output, tmp_path / "audit.csv", "--draw", 12, "--unit", "video")
    capsys.readouterr()
    neutral = of(measured(capsys, output, "--labels", audit), "neutral")
    assert neutral["n_labels"] == 12 * WINDOWS
    assert neutral["low"] < 2 / 3 < neutral["high"]
    as_windows = of(measured(capsys, output, "--labels", audit, "--unit", "window"), "neutral")
    assert (
        as_windows["audit_high"] - as_windows["audit_low"]
        < neutral["audit_high"] - neutral["audit_low"]
    )


def test_labels_by_time_with_some_that_say_nothing(output: Path, tmp_path: Path, capsys) -> None:
    rows = "".join(f"{video}.mp4,{2.0 * w},neutral\n" for video in (0, 1) for w in range(1, 10))
    (tmp_path / "l.csv").write_text(
        f"uri,start_s,label\n{rows}0.mp4,22.0,cannot tell\n1.mp4,24.0,not_a_face\n9999.mp4,2.0,fear\n"
    )
    assert main(["measure", str(output), "--labels", str(tmp_path / "l.csv"), "--json"]) == 0
    out, error = capsys.readouterr()
    neutral = of(json.loads(out), "neutral")
    assert (neutral["n_labels"], neutral["estimate"]) == (18, 1.0)
    assert "0 are not filled in, and 1 are of windows that the output has not" in error
    assert neutral["high"] == 1.0


def test_two_people_who_differ_are_half_of_each(output: Path, tmp_path: Path, capsys) -> None:
    rows = "".join(f"{v}.mp4,0,0,3,{label}\n" for v in range(20) for label in ("sad", "fear"))
    (tmp_path / "l.csv").write_text(f"uri,segment,track_id,window,label\n{rows}")
    told = measured(capsys, output, "--labels", tmp_path / "l.csv")
    assert of(told, "fear")["estimate"] == pytest.approx(0.5, abs=0.01)
    assert of(told, "fear")["naive"] == 0.0


@pytest.mark.parametrize(
    ("table", "arguments", "line"),
    [
        (
            "uri,label\n0.mp4,fear\n",
            (),
            "must name windows by segment, track_id, window, or start_s",
        ),
        ("start_s,label\n0,fear\n", (), "has no column 'uri'"),
        ("uri,start_s,label\n0.mp4,0,bored\n", (), "'bored' is no label"),
        ("uri,start_s,label\n0.mp4,,fear\n", (), "row 1: start_s None is no time"),
        ("uri,start_s,label\n0.mp4,00:00:02,fear\n", (), "is no time"),
        ('uri,start_s,label\n0.mp4,"2,0",fear\n', (), "'2,0' is no time"),
        (
            "uri,segment,track_id,window,label\n0.mp4,0,face 0,1,fear\n",
            (),
            "track_id 'face 0' is no number",
        ),
        ("uri,start_s,label\n0.mp4,0,0\n", (), "0 is no label"),
        ("uri,start_s,label\n0.mp4,0,\n", (), "no row has a label yet"),
        ("uri,start_s,label\n7,0,fear\n", (), "none of its 1 windows is in the output"),
        ("uri,start_s,label,label\n0.mp4,0,fear,anger\n", (), "two columns of one name"),
        ("uri,start_s,label\n0.mp4,0,fear\n", ("--seed", "1"), "--seed is of --draw"),
        (
            "uri,start_s,label\n0.mp4,0,fear\n",
            ("--draw", "1", "--audit", "{t}/n.csv"),
            "one after the other",
        ),
        (None, ("--draw", "5", "--audit", "{t}/none/n.csv"), "is no folder of this machine"),
        (None, ("--audit", "{t}/n.csv"), "--draw N and --audit FILE go together"),
        ("uri,start_s,label,unit\n0.mp4,0,fear,frame\n", (), "unit must say window or video"),
        ("uri,start_s,label\n0.mp4,0,fear\n", ("--by", "mood"), "can be measured by video_id, uri"),
        ("uri,start_s,label\n0.mp4,0,fear\n", ("--by", "bbox"), "can be measured by"),
        ("uri,start_s,label\n0.mp4,0,fear\n", ("--reading", "x"), "the output has rows of m"),
        (None, ("--draw", "5"), "--draw N and --audit FILE go together"),
        (None, ("--draw", "0", "--audit", "{t}/new.csv"), "must be at least 1"),
        (None, ("--draw", "5", "--audit", "{t}"), "is there already"),
        (None, ("--labels", "{t}/none.csv"), "does not exist"),
    ],
)
def test_a_mistake_is_one_line(
    output: Path, tmp_path: Path, capsys, table: str | None, arguments: tuple[str, ...], line: str
) -> None:
    given = [argument.format(t=tmp_path) for argument in arguments]
    if table is not None:
        (tmp_path / "l.csv").write_text(table)
        given += ["--labels", str(tmp_path / "l.csv")]
    assert main(["measure", str(output), *given]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert len(told.strip().splitlines()) == 1


def test_windows_at_one_time_must_be_told_apart(tmp_path: Path, capsys) -> None:
    row = segment("0", windows=2)
    row["annotations"] += [a | {"track_id": 1} for a in row["annotations"]]
    commit_segments(lake_at(tmp_path / "out"), [row], RUN, no_fence)
    (tmp_path / "l.csv").write_text("uri,start_s,label\n0.mp4,2.0,fear\n")
    assert main(["measure", str(tmp_path / "out"), "--labels", str(tmp_path / "l.csv")]) == 2
    assert "has several windows at start_s 2" in capsys.readouterr().err


def test_rows_of_several_models_want_one_named(tmp_path: Path, capsys) -> None:
    row = segment("0", windows=2)
    row["annotations"] += [a | {"model": "n"} for a in row["annotations"]]
    commit_segments(lake_at(tmp_path / "out"), [row], RUN, no_fence)
    assert main(["measure", str(tmp_path / "out")]) == 2
    assert "rows of m, n; say whose count: --reading NAME" in capsys.readouterr().err
    assert main(["measure", str(tmp_path / "out"), "--reading", "n"]) == 0


def test_people_who_often_cannot_tell_bias_nothing(output: Path, tmp_path: Path, capsys) -> None:
    """Of what is neutral they cannot tell in two of three windows: what they can tell of is half neutral."""
    audit = labelled(output, tmp_path / "audit.csv", "--draw", 600)
    rows = list(csv.DictReader(audit.open()))
    untold = 0
    for row in rows:
        if row["label"] == "neutral" and untold_at(row):
            row["label"], untold = "not a face" if untold % 2 else "cannot tell", untold + 1
    with audit.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    neutral = of(measured(capsys, output, "--labels", audit), "neutral")
    places = [(v, w) for v in range(VIDEOS) for w in range(WINDOWS)]
    kept = [p for p in places if truth_of(*p) == "happiness" or not hidden(*p)]
    shown = sum(seconds_of(*p) for p in kept if truth_of(*p) == "neutral")
    truth = shown / sum(seconds_of(*p) for p in kept)
    assert neutral["low"] < truth < neutral["high"]
    assert neutral["high"] - neutral["low"] < 0.2
    assert neutral["n_labels"] == 600 - untold


def hidden(video: int, window: int) -> bool:
    return (video + window) % 3 != 0


def untold_at(row: dict) -> bool:
    return hidden(int(Path(row["uri"]).stem), int(row["window"]))


def test_an_archive_that_has_grown_is_not_measured_by_what_was_drawn_before(
    tmp_path: Path, capsys
) -> None:
    lake = lake_at(tmp_path / "out")
    commit_segments(lake, [row_of(video) for video in range(6)], RUN, no_fence)
    audit = labelled(tmp_path / "out", tmp_path / "a.csv", "--draw", 20)
    capsys.readouterr()
    assert measured(capsys, tmp_path / "out", "--labels", audit)
    commit_segments(lake, [row_of(6)], RUN, no_fence)
    assert main(["measure", str(tmp_path / "out"), "--labels", str(audit)]) == 2
    assert "was drawn from 120 windows and there are 140 now" in capsys.readouterr().err


def test_windows_that_were_cut_otherwise_since_are_others(tmp_path: Path, capsys) -> None:
    rows = [row_of(video) for video in range(4)]
    commit_segments(lake_at(tmp_path / "a"), rows, RUN, no_fence)
    audit = labelled(tmp_path / "a", tmp_path / "a.csv", "--draw", 40)
    for row in rows:
        for annotation in row["annotations"]:
            annotation |= {"start_s": annotation["start_s"] / 2, "end_s": annotation["end_s"] / 2}
    commit_segments(lake_at(tmp_path / "b"), rows, RUN, no_fence)
    capsys.readouterr()
    assert main(["measure", str(tmp_path / "b"), "--labels", str(audit), "--json"]) == 2
    assert "none of its 40 windows is in the output" in capsys.readouterr().err


def test_one_file_name_in_two_folders_is_two_videos(tmp_path: Path, capsys) -> None:
    rows = [row_of(video) | {"uri": f"/{folder}/x.mp4"} for video, folder in ((0, "a"), (1, "b"))]
    commit_segments(lake_at(tmp_path / "out"), rows, RUN, no_fence)
    head = "uri,segment,track_id,window,label\n"
    (tmp_path / "whole.csv").write_text(f"{head}/a/x.mp4,0,0,1,fear\n/b/x.mp4,0,0,1,anger\n")
    told = measured(capsys, tmp_path / "out", "--labels", tmp_path / "whole.csv")
    assert of(told, "fear")["n_labels"] == 2
    (tmp_path / "short.csv").write_text(f"{head}x.mp4,0,0,1,fear\n")
    asked = ["measure", str(tmp_path / "out"), "--labels", str(tmp_path / "short.csv")]
    assert main(asked) == 2
    assert "has several windows at segment 0, track_id 0, window 1" in capsys.readouterr().err


def test_times_as_people_write_them_find_their_windows(tmp_path: Path, capsys) -> None:
    row = row_of(0)
    for k, annotation in enumerate(row["annotations"]):
        annotation |= {"start_s": k * 60 / 29.97, "end_s": (k + 1) * 60 / 29.97}
    commit_segments(lake_at(tmp_path / "out"), [row], RUN, no_fence)
    lines = "".join(f"0.mp4,{k * 60 / 29.97:.2f},neutral\n" for k in range(WINDOWS))
    (tmp_path / "l.csv").write_text(f"uri,start_s,label\n{lines}")
    told = measured(capsys, tmp_path / "out", "--labels", tmp_path / "l.csv")
    assert of(told, "neutral")["n_labels"] == WINDOWS


def test_what_was_said_in_the_view_measures_as_far_as_a_random_draw_reaches(
    output: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(output, tmp_path / "out")
    lake = lake_at(tmp_path / "out")
    drawn = draw_windows(Output(lake.uri, {}), 200, 3).rows

    revisions = iter(range(1, 10_000))

    def say_true(row: dict, queue: str | None) -> None:
        video = int(Path(row["uri"]).stem)
        told = {name: row[name] for name in ("uri", "segment", "track_id", "start_s", "end_s")}
        label = truth_of(video, row["window"])
        say(
            lake,
            str(video),
            row["window"],
            **told,
            label=label,
            queue=queue,
            revision=next(revisions),
        )

    for row in drawn[100:200]:
        say_true(row, "uncertain, seed 3")
    assert {e["estimate"] for e in measured(capsys, lake.uri, "--seed", 3)} == {None}, "no sample"
    for row in drawn[:90]:
        say_true(row, draw_name("window", 3))
    entries = {e["emotion"]: e for e in measured(capsys, lake.uri, "--seed", 3)}
    assert entries["neutral"]["n_labels"] == 90, "those before the first that is missing"
    assert entries["neutral"]["low"] < 2 / 3 < entries["neutral"]["high"]
    for row in drawn[90:100]:
        say_true(row, draw_name("window", 3))
    entries = {e["emotion"]: e for e in measured(capsys, lake.uri, "--seed", 3)}
    assert entries["neutral"]["n_labels"] == 200, "up to the first that nobody has labelled"
    for row in drawn[:90]:
        say_true(row, None)  # corrected on its video's page, where nothing was asked
    entries = {e["emotion"]: e for e in measured(capsys, lake.uri)}
    assert entries["neutral"]["n_labels"] == 200, "the draw is the one that labels tell"
    assert {e["estimate"] for e in measured(capsys, lake.uri, "--seed", 4)} == {None}
