"""Models behind an endpoint: its probabilities are the scores, its faults cost what they must, and nothing is
sent that nobody allowed."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from emolake.actors import annotation_actor
from emolake.jobs.cli import main
from emolake.pipeline.annotators.base import Annotation, FaceCrops, WindowInput, load_annotator
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import JobFailed
from emolake.pipeline.faces.encoding import encode_crop
from emolake.pipeline.labels import label_set
from emolake.pipeline.lake.runs import end_run, write_run
from emolake.pipeline.models.catalog import model_path, model_revision
from tests.conftest import Emolake, read_rows
from tests.local_server import running
from tests.pipeline.annotators.fake_vlm import FakeVlm
from tests.pipeline.lake.test_lake import lake_at, no_fence

LABELS = label_set("fer2013")


@pytest.fixture
def vlm() -> Iterator[FakeVlm]:
    with running(FakeVlm()) as server:
        yield server


def described(folder: Path, vlm: FakeVlm, file: str = "vlm.yaml", **told: object) -> str:
    path = folder / file
    fast = {"timeout_s": 1.0, "retries": 2, "patience_s": 0.0, "size": 64}
    path.write_text(yaml.safe_dump({"endpoint": vlm.url, "model": "m"} | fast | told))
    return str(path)


def windows(annotator, *brightness: int, frames: int = 6) -> list[WindowInput]:
    view = annotator.needs.crops[0]
    made = []
    for level in brightness:
        picture = np.full((view.spec.size, view.spec.size, 3), level, np.uint8)
        crops = FaceCrops([encode_crop(picture, "png")] * frames, np.zeros((frames, 5, 2)))
        made.append(WindowInput({view: crops}, np.zeros((frames, 0), np.float32)))
    return made


def loaded(folder: Path, vlm: FakeVlm, options: dict[str, object] | None = None, **told: object):
    model = described(folder, vlm, **told)
    return load_annotator(model, AnnotatorConfig(send_pictures=True, **(options or {})), "cpu")


@pytest.mark.parametrize("mood", ["tells", "limits", "errs", "stalls", "breaks off"])
def test_scores_are_the_probabilities_of_the_letters(
    tmp_path: Path, vlm: FakeVlm, mood: str
) -> None:
    vlm.mood = mood
    annotator = loaded(tmp_path, vlm)
    told = annotator.annotate(windows(annotator, 10, 130, 250))
    assert [a.emotion for a in told] == [LABELS[0], LABELS[3], LABELS[6]]
    for annotation in told:
        assert annotation.confidence == pytest.approx(0.7)
        assert sum(annotation.scores.values()) == pytest.approx(1)
        assert annotation.absent is None
    assert all(len(r["messages"][0]["content"]) == 4 + 1 for r in vlm.requests)
    assert annotator.usage["requests"] == len(vlm.requests)
    assert annotator.usage["input_tokens"] >= 300


def test_without_probabilities_the_answer_is_read(tmp_path: Path, vlm: FakeVlm) -> None:
    vlm.mood = "no logprobs"
    annotator = loaded(tmp_path, vlm)
    (told,) = annotator.annotate(windows(annotator, 130))
    assert told.scores == {label: float(label == LABELS[3]) for label in LABELS}
    annotator.annotate(windows(annotator, 10))
    assert sum("logprobs" in request for request in vlm.requests) == 1, "it is asked once"


@pytest.mark.parametrize("mood", ["babbles", "lies"])
def test_an_answer_that_is_none_is_told_as_absent(tmp_path: Path, vlm: FakeVlm, mood: str) -> None:
    vlm.mood = mood
    annotator = loaded(tmp_path, vlm)
    (told,) = annotator.annotate(windows(annotator, 130))
    assert told.absent == ["label_answer"]
    assert list(told.scores.values()) == pytest.approx([1 / 7] * 7)


def test_words_are_asked_for_where_they_are_wanted(tmp_path: Path, vlm: FakeVlm) -> None:
    annotator = loaded(tmp_path, vlm, {"describe": True})
    (told,) = annotator.annotate(windows(annotator, 130))
    assert told.description == "The brows are raised."


def test_one_window_that_it_fails_on_costs_itself(tmp_path: Path, vlm: FakeVlm) -> None:
    annotator = loaded(tmp_path, vlm, retries=0)
    vlm.mood = "errs"
    first, second = annotator.annotate(windows(annotator, 10, 130))
    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)
    assert len(vlm.requests) == 2
    again = annotator.annotate(windows(annotator, 10, 130, 250))
    assert [isinstance(a, Annotation) for a in again] == [True, True, False]


def test_an_endpoint_that_is_away_ends_the_job_in_one_line(tmp_path: Path, vlm: FakeVlm) -> None:
    annotator = loaded(tmp_path, vlm, endpoint="http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(JobFailed, match=r"127.0.0.1:9.*the same command resumes"):
        annotator.annotate(windows(annotator, 10))


def test_a_key_that_it_refuses_ends_the_job(tmp_path: Path, vlm: FakeVlm, monkeypatch) -> None:
    vlm.key = "right"
    monkeypatch.setenv("OPENAI_API_KEY", "planted-wrong-key")
    annotator = loaded(tmp_path, vlm)
    with pytest.raises(JobFailed, match="refuses the request") as told:
        annotator.annotate(windows(annotator, 10))
    assert "planted" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("Disgust.", "disgust"),
        ("Fear", "fear"),
        ("A person who smiles", None),
        ("The face shows", None),
        ("Z", None),
        ("A" + " " * 4000 + "x!x", None),
        ("D. hap", "happiness"),
        ("(D) Happy!", "happiness"),
        ("D. anger", None),
    ],
)
def test_a_first_token_that_looks_like_a_letter_is_none(
    tmp_path: Path, vlm: FakeVlm, words: str, label: str | None
) -> None:
    vlm.mood, vlm.words = "says", (words, {words[0]: 0.9, "A": 0.1})
    annotator = loaded(tmp_path, vlm)
    (told,) = annotator.annotate(windows(annotator, 130))
    if label is None:
        assert told.absent == ["label_answer"]
    else:
        assert told.emotion == label
        assert told.absent is None


@pytest.mark.parametrize(
    "body", ["<html>", "[]", '{"choices": null}', '{"choices": [{"message": 3}]}']
)
def test_a_body_that_is_none_of_the_apis_costs_its_window(
    tmp_path: Path, vlm: FakeVlm, body: str
) -> None:
    vlm.mood, vlm.words = "body", (body, {})
    annotator = loaded(tmp_path, vlm)
    (told,) = annotator.annotate(windows(annotator, 130))
    assert isinstance(told, ValueError)
    assert "none of the API's" in str(told)
    assert len(vlm.requests) == 1


def test_one_refusal_of_probabilities_does_not_end_them(tmp_path: Path, vlm: FakeVlm) -> None:
    annotator = loaded(tmp_path, vlm)
    annotator.annotate(windows(annotator, 10))
    vlm.mood = "no logprobs"
    (told,) = annotator.annotate(windows(annotator, 10))
    assert isinstance(told, ValueError)
    vlm.mood = "tells"
    (again,) = annotator.annotate(windows(annotator, 10))
    assert again.confidence == pytest.approx(0.7)


def test_a_window_that_alone_is_refused_or_stalls_costs_itself(
    tmp_path: Path, vlm: FakeVlm
) -> None:
    annotator = loaded(tmp_path, vlm, retries=0, concurrency=1)
    annotator.annotate(windows(annotator, 10))
    vlm.key = "another"  # as gateways refuse a picture
    (told,) = annotator.annotate(windows(annotator, 20))
    assert isinstance(told, ValueError)


def test_it_is_not_followed_elsewhere(tmp_path: Path, vlm: FakeVlm) -> None:
    with running(FakeVlm()) as elsewhere:
        vlm.mood, vlm.words = "redirects", (elsewhere.url + "/chat/completions", {})
        annotator = loaded(tmp_path, vlm)
        with pytest.raises(JobFailed, match="sends us elsewhere"):
            annotator.annotate(windows(annotator, 10))
        assert not elsewhere.requests


def test_a_body_that_trickles_is_given_up(tmp_path: Path, vlm: FakeVlm) -> None:
    vlm.mood = "trickles"
    annotator = loaded(tmp_path, vlm, retries=0, timeout_s=0.5)
    with pytest.raises(JobFailed):
        annotator.annotate(windows(annotator, 10))
    assert 0 < vlm.trickled < 50


def test_the_job_ends_where_the_endpoint_refuses_it_and_nothing_is_asked_twice(
    tmp_path: Path, vlm: FakeVlm, monkeypatch
) -> None:
    vlm.key = "right"
    annotator = loaded(tmp_path, vlm, concurrency=1)
    made = windows(annotator, 10, 130)
    with pytest.raises(JobFailed):
        annotation_actor._annotated(annotator, made)
    assert len(vlm.requests) <= 2


def test_many_windows_are_in_flight(tmp_path: Path, vlm: FakeVlm) -> None:
    annotator = loaded(tmp_path, vlm, concurrency=6, timeout_s=10)
    annotator.annotate(windows(annotator, *range(0, 240, 10), frames=1))
    assert 2 < vlm.most_at_once <= 6


def test_what_the_endpoint_is_makes_the_revision_and_where_it_is_does_not(
    tmp_path: Path, vlm: FakeVlm
) -> None:
    first = model_revision(model_path(described(tmp_path, vlm)))
    elsewhere = described(tmp_path, vlm, endpoint="https://other/v1", concurrency=1)
    assert model_revision(model_path(elsewhere)) == first
    assert model_revision(model_path(described(tmp_path, vlm, model="n"))) != first
    assert model_revision(model_path(described(tmp_path, vlm, revision="2"))) != first


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({}, "up to 4 crops of the face of every window would be sent there; allow it with"),
        ({"endpoint": "ftp://host"}, "endpoint"),
        ({"endpoint": "https://user:planted@host/v1"}, "endpoint"),
        ({"endpoint": "https://host/v1?api-key=planted"}, "endpoint"),
        ({"endpoint": "http://host:99999999/v1"}, "is no base of an API"),
        ({"endpoint": "http://host/v1/chat/completions"}, "is no base of an API"),
        ({"label_set": "cats"}, "label set 'cats' is unknown"),
        ({"modell": "m"}, "unknown key 'modell'"),
    ],
)
def test_what_is_wrong_is_one_line_before_work_starts(
    tmp_path: Path, vlm: FakeVlm, capsys, told: dict[str, object], line: str
) -> None:
    model = described(tmp_path, vlm, **told)
    (tmp_path / "videos").mkdir()
    asked = [
        "annotate",
        str(tmp_path / "videos"),
        "--output",
        str(tmp_path / "out"),
        "--model",
        model,
    ]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.strip().splitlines()) == 1
    assert "planted" not in error
    assert not vlm.requests


def test_a_run_through_an_endpoint_tells_what_it_took(
    clips: Path, emolake: Emolake, vlm: FakeVlm, tmp_path: Path
) -> None:
    vlm.key = "planted-right-key"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").symlink_to(clips / "single_face.mp4")
    big = described(tmp_path, vlm, "big.yaml", price=[1.0, 10.0], timeout_s=30)
    small = described(tmp_path, vlm, "small.yaml", price=[0.1, 0.5], timeout_s=30, model="n")
    done = emolake(
        *("annotate", tmp_path / "in", "--output", tmp_path / "out", "--json"),
        *("--model", f"{big},{small}", "--set", "annotator.send_pictures=true"),
        env={"OPENAI_API_KEY": "planted-right-key"},
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out", "annotations")
    assert rows
    assert {row["model"] for row in rows} == {"big", "small"}
    assert all(row["confidence"] == pytest.approx(0.7) for row in rows)
    told = json.loads(done.stdout)
    n = len(rows)
    cost = n / 2 * (100 * (1.0 + 0.1) + 2 * (10.0 + 0.5)) / 1e6
    assert told["endpoint"] == {
        "requests": n, "input_tokens": 100 * n, "output_tokens": 2 * n, "cost": pytest.approx(cost)
    }  # fmt: skip
    (record,) = (tmp_path / "out" / "_runs").glob("*/run.json")
    assert json.loads(record.read_text())["endpoint"] == told["endpoint"]
    assert "planted" not in record.read_text() + done.stdout + done.stderr


def test_the_record_of_a_run_that_fails_tells_what_it_took(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    write_run(lake, {"run_id": "r", "state": "running", "model": "big"})
    end_run(lake, "r", "the endpoint is away", {"endpoint": {"requests": 3}}, no_fence)
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text()) == {
        "run_id": "r", "state": "failed", "model": "big", "error": "the endpoint is away",
        "endpoint": {"requests": 3},
    }  # fmt: skip


def test_an_evaluation_tells_what_each_endpoint_took(
    vlm: FakeVlm, tmp_path: Path, capsys, demo_videos: Path
) -> None:
    (tmp_path / "t.csv").write_text(f"uri,label\n{demo_videos / 'portrait.mp4'},happy\n")
    model = described(tmp_path, vlm, price=[1.0, 10.0], timeout_s=30)
    asked = ["evaluate", "--model", model, "--data", str(tmp_path / "t.csv"), "--json"]
    assert main([*asked, "--set", "annotator.send_pictures=true"]) == 0
    told = json.loads(capsys.readouterr().out)
    n = len(vlm.requests)
    assert n
    assert told["endpoint"] == {
        "requests": n, "input_tokens": 100 * n, "output_tokens": 2 * n,
        "cost": pytest.approx(120 * n / 1e6),
    }  # fmt: skip
    assert told["windows_per_second"] > 0
    assert told["model"]["megabytes"] == 0
