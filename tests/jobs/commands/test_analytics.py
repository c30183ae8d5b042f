"""Every question of docs/analytics.md, asked of a real output."""

import re
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from pyiceberg.catalog import load_catalog

from emolake.jobs.cli import main
from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.reading import read_annotations, read_tracks, read_videos
from tests.conftest import ROOT, S3, Emolake, read_rows

TEXT = (ROOT / "docs" / "analytics.md").read_text()
BLOCKS = re.findall(r"### ([^\n]+)\n(?:(?!### ).)*?```(sql|python)\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def ground(demo_output: Path, demo_videos: Path, emolake: Emolake, tmp_path_factory: Any) -> Path:
    """A folder with `out`, `other` (a second reading) and `labels.csv`."""
    folder: Path = tmp_path_factory.mktemp("analytics")
    (folder / "out").symlink_to(demo_output)
    done = emolake(
        *("annotate", demo_videos, "--output", folder / "other", "--quiet"),
        *("--set", "windows.frames_per_window=1", "--run-id", "other"),
        *("--set", f"iceberg.catalog=sqlite:///{folder}/lake.db"),
    )
    assert done.returncode == 0, done.stderr
    rows = [(demo_videos / "portrait.mp4", 0, 60, "happiness")]
    rows.append((demo_videos / "pan_away.mp4", 0, 60, "sadness"))
    labels = pd.DataFrame(rows, columns=["uri", "start_s", "end_s", "label"])
    labels.to_csv(folder / "labels.csv", index=False)
    return folder


def asked(kind: str, question: str, ground: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.chdir(ground)
    if kind == "sql":
        return duckdb.sql(question).df()
    names: dict[str, Any] = {}
    exec(question, names)  # our own documentation
    answer = names["answer"]
    return answer.to_pandas(use_pyarrow_extension_array=False) if "polars" in question else answer


LOCAL = [b for b in BLOCKS if "s3://" not in b[2]]


@pytest.mark.parametrize(("title", "kind", "question"), LOCAL, ids=[b[0] for b in LOCAL])
def test_the_question_has_an_answer(
    ground: Path, monkeypatch: pytest.MonkeyPatch, title: str, kind: str, question: str
) -> None:
    answer = asked(kind, question, ground, monkeypatch)
    empty = ("Which emotion", "longest negative", "Who smiles with whom", "two models")
    if not any(part in title for part in empty):  # one happy face has none of these
        assert len(answer) > 0


def test_there_are_at_least_ten_questions() -> None:
    assert len(BLOCKS) >= 10


def answered(title: str, ground: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    ((_, kind, question),) = [b for b in BLOCKS if title in b[0]]
    return asked(kind, question, ground, monkeypatch)


def test_answers_agree_with_the_rows(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_rows(ground / "out", "annotations")
    smiles = sum(r["emotion"] == "happiness" for r in rows)
    per_hour = answered("Smiles per hour", ground, monkeypatch)
    assert per_hour["smiling_windows"].tolist() == [smiles]
    assert per_hour["per_hour"][0] == pytest.approx(smiles / (18 / 3600), rel=0.02)
    honest = answered("confidence honest", ground, monkeypatch)
    assert honest["windows"].sum() == len(rows)
    right = (honest["right"] * honest["windows"]).sum()
    portraits = [r for r in rows if Path(r["uri"]).name == "portrait.mp4"]
    assert right == pytest.approx(sum(r["emotion"] == "happiness" for r in portraits))
    fails = answered("What fails", ground, monkeypatch)
    assert fails["reason"].tolist() == ["truncated"]
    profile = answered("emotional profile", ground, monkeypatch)
    assert profile.sum(axis=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


def test_a_run_publishes_itself_as_one_snapshot(
    ground: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answered("From Iceberg", ground, monkeypatch)
    assert answer["windows"].sum() == len(read_rows(ground / "other", "annotations"))
    catalog = load_catalog("emolake", type="sql", uri=f"sqlite:///{ground}/lake.db")
    for table in ("annotations", "tracks", "videos"):
        (snapshot,) = catalog.load_table(("emolake", table)).snapshots()
        assert snapshot.summary["emolake.run-id"] == "other"
    again = ["publish", str(ground / "other"), "--catalog", f"sqlite:///{ground}/lake.db"]
    assert main(again) == 0
    assert capsys.readouterr().out.count("nothing new") == 3


def test_a_run_id_stands_for_one_configuration(
    ground: Path, demo_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["annotate", str(demo_videos), "--output", str(ground / "other"), "--run-id", "other"]
    assert main([*same, "--reprocess"]) == 2
    assert "run of another configuration" in capsys.readouterr().err


SYNTHETIC = [(0, "fear"), (1, "fear"), (2, "happiness"), (3, "anger"), (4, "neutral")]


def test_stretches_and_transitions_on_known_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out" / "annotations" / "corpus=c" / "date=d"
    folder.mkdir(parents=True)
    rows = [
        {"video_id": "v", "uri": "u", "segment": 0, "track_id": t, "window": w,
         "start_s": 2.0 * w, "end_s": 2.0 * w + 2, "emotion": e, "confidence": 0.9}
        for t in (0, 1) for w, e in SYNTHETIC
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "x.parquet")
    (longest,) = answered("longest negative", tmp_path, monkeypatch).to_dict("records")
    assert (longest["from_s"], longest["to_s"], longest["seconds"]) == (0, 4, 4)
    follows = answered("Which emotion", tmp_path, monkeypatch)
    assert set(zip(follows["before"], follows["after"], follows["times"], strict=True)) == {
        ("fear", "happiness", 2), ("happiness", "anger", 2), ("anger", "neutral", 2)
    }  # fmt: skip
    together = answered("Who smiles with whom", tmp_path, monkeypatch)
    assert len(together) == 5
    assert together["alike"].all()


def test_the_same_over_object_storage(
    demo_output: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.fs().put(f"{demo_output}/", f"{s3.bucket}/out/", recursive=True)
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    windows = len(read_rows(demo_output, "annotations"))
    answer = answered("From object storage", tmp_path, monkeypatch)
    assert answer["windows"].sum() == windows
    published = ["publish", f"s3://{s3.bucket}/out", "--catalog", f"sqlite:///{tmp_path}/lake.db"]
    assert main(published) == 0
    assert s3.fs().find(f"{s3.bucket}/out/_iceberg"), "the warehouse stands beside the tables"
    answer = answered("From Iceberg", tmp_path, monkeypatch)
    assert answer["windows"].sum() == windows


def test_readers_follow_the_ledger(demo_output: Path) -> None:
    output = str(demo_output)
    assert read_annotations(output).num_rows == len(read_rows(demo_output, "annotations"))
    assert read_tracks(output, columns=["uri", "corpus"]).column_names == ["uri", "corpus"]
    assert sorted(read_videos(output)["state"].to_pylist()) == [
        "annotated", "annotated", "failed", "no_face"
    ]  # fmt: skip


def test_what_is_no_output_or_no_column_is_told(demo_output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        read_annotations(str(tmp_path))
    with pytest.raises(UserError, match="no column 'mood'"):
        read_annotations(str(demo_output), columns=["mood"])
