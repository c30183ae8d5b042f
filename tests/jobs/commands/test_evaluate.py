"""`emolake evaluate` on pictures, on videos, and on what an output says."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage import data

from emolake.jobs.cli import main
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.models.catalog import DEFAULT_MODEL, model_path
from tests.conftest import read_rows
from tests.pipeline.lake.test_lake import RUN, lake_at, no_fence, segment


@pytest.fixture(scope="module")
def portrait() -> bytes:
    """A smiling face, as PNG."""
    picture = np.asarray(data.astronaut())[0:220, 120:330]
    return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def evaluated(capsys, *arguments: object) -> dict:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_pictures_by_their_bytes_and_each_group_apart(
    portrait: bytes, tmp_path: Path, capsys
) -> None:
    table = tmp_path / "t.parquet"
    rows = {
        "image": [portrait, portrait, portrait, b"no picture"],
        "label": ["happy", "sadness", "Joy", "happy"],
        "age": ["20-29", "20-29", "60-69", "60-69"],
        "gender": ["female", None, None, None],
    }
    pd.DataFrame(rows).to_parquet(table)
    told = evaluated(capsys, "--data", table, "--set", "annotator.precision=bfloat16")
    assert (told["n"], told["unreadable"], told["war"]) == (3, 1, pytest.approx(2 / 3))
    assert told["uar"] == 0.5
    happy, sad = (told["labels"].index(label) for label in ("happiness", "sadness"))
    assert told["confusion"][happy][happy] == 2
    assert told["confusion"][sad][happy] == 1
    assert told["per_class_recall"]["anger"] is None
    assert told["model"]["name"] == "emo-llama-tiny"
    ages = told["by_attribute"]["age"]
    assert {a: (t["n"], t["war"], t["unreadable"]) for a, t in ages.items()} == {
        "20-29": (2, 0.5, 0),
        "60-69": (1, 1.0, 1),
    }
    assert told["by_attribute"]["gender"]["female"]["war"] == 1
    assert "race" not in told["by_attribute"]


def test_two_models_on_the_same_pictures_with_votes_and_spoilt(
    portrait: bytes, tmp_path: Path, capsys
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_path(DEFAULT_MODEL), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"name": "other"}))
    table = pa.table(
        {
            "image": [portrait] * 3,
            "label": ["happy", "happy", "contempt"],
            "votes": [[9.0, 1.0], [6.0, 4.0], [0.0, 10.0]],
            "votes_raw": [[9, 1], [6, 4], [0, 10]],
        },
        metadata={"votes_order": "happy,contempt"},
    )
    pq.write_table(table, tmp_path / "t.parquet")
    page = tmp_path / "page.html"
    one, two = evaluated(
        capsys, "--model", f"{DEFAULT_MODEL},{other}", "--data", tmp_path / "t.parquet",
        "--corruptions", "noise,box_error", "--html", page,
    )  # fmt: skip
    assert [entry["model"]["name"] for entry in (one, two)] == [DEFAULT_MODEL, "other"]
    assert (one["n"], one["outside"], one["war"], one["war_low"]) == (2, 1, 1.0, 1.0)
    assert one["soft_accuracy"] == 1.0, "what the set has no label for is left out of the votes"
    assert one["one_person"]["war"] == pytest.approx((0.9 + 0.6) / 2)
    assert set(one["corruptions"]) == {"noise", "box_error"}
    assert one["war"] == two["war"]
    told = page.read_text()
    assert "other" in told
    assert "McNemar" in told
    assert "http://" not in told
    assert main(["evaluate", "--data", str(tmp_path / "t.parquet"), "--corruptions", "rust"]) == 2
    assert "known are jpeg_20" in capsys.readouterr().err


def test_videos_and_pictures_by_uri(
    portrait: bytes, demo_videos: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "face.png").write_bytes(portrait)
    rows = [
        (demo_videos / "portrait.mp4", "happiness"),
        (demo_videos / "no_face.mp4", "neutral"),
        (demo_videos / "damaged.mp4", "neutral"),
        ("face.png", "happiness"),
        ("absent.mp4", "fear"),
        ("absent.png", "fear"),
    ]
    table = tmp_path / "t.csv"
    pd.DataFrame(rows, columns=["uri", "label"]).to_csv(table, index=False)
    told = evaluated(capsys, "--data", table)
    assert (told["n"], told["unreadable"], told["war"]) == (2, 4, 1.0)


def test_an_output_against_labels_of_stretches(demo_output: Path, tmp_path: Path, capsys) -> None:
    rows = read_rows(demo_output, "annotations")
    at_three = next(
        r for r in rows if Path(r["uri"]).name == "portrait.mp4" and r["start_s"] == 2.0
    )
    labels = [
        ("portrait.mp4", 2.5, 3.5, at_three["emotion"]),  # by file name, within one window
        (at_three["uri"], None, None, "anger"),  # by uri, the whole video
        ("portrait.mp4", 100.0, 200.0, "fear"),  # where nothing is
        ("nobody.mp4", None, None, "fear"),
    ]
    table = tmp_path / "labels.csv"
    pd.DataFrame(labels, columns=["uri", "start_s", "end_s", "label"]).to_csv(table, index=False)
    told = evaluated(capsys, "--output", demo_output, "--labels", table)
    assert (told["n"], told["unreadable"], told["war"]) == (2, 2, 0.5)
    truth = [told["labels"].index(label) for label in (at_three["emotion"], "anger")]
    assert [sum(told["confusion"][k]) for k in truth] == [1, 1]


def test_an_output_is_scored_for_units_numbers_and_sentences(tmp_path, capsys) -> None:
    lake = lake_at(tmp_path / "out")
    row = segment("a", windows=2)
    for window, units, valence, words in zip(
        row["annotations"], (["AU4"], ["AU4", "AU20"]), (0.1, 0.7), ("A scared face.", "Fear."),
        strict=True,
    ):  # fmt: skip
        window |= {"action_units": units, "valence": valence, "description": words}
    other = [a | {"model": "n", "model_revision": "s", "valence": 0.5} for a in row["annotations"]]
    commit_segments(lake, [row | {"annotations": row["annotations"] + other}], RUN, no_fence)
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "uri,start_s,end_s,label,action_units,valence,description\n"
        "a.mp4,0,2,fear,4 20,0.2,a scared face\n"
        "a.mp4,2,4,anger,AU4,0.9,an angry face\n"
    )
    asked = ["evaluate", "--output", str(tmp_path / "out"), "--labels", str(labels), "--json"]
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["war"] == 0.5
    assert told["action_unit_f1"]["disfa"]["AU4"] == 1.0
    # AU20: given once, true once, never together; the other 18 of the set never occur.
    assert told["action_unit_f1"]["faba-instruct"]["mean"] == pytest.approx(1 / 20)
    assert told["pearson"] == {"valence": pytest.approx(1.0)}
    assert told["rouge_l"] == pytest.approx(0.5)
    assert told["rege"]["emotion"] == pytest.approx(1.0)
    assert told["rege"]["action_units"] == pytest.approx(0.55)
    assert main([*asked, "--reading", "n"]) == 0
    assert json.loads(capsys.readouterr().out)["pearson"] == {"valence": None}
    assert main([*asked, "--reading", "x"]) == 2
    assert "the output has rows of m, n" in capsys.readouterr().err
