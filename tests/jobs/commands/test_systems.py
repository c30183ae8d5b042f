"""All systems in one pass over real videos, by the command line: one row a window and model."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Emolake, read_rows
from tests.pipeline.annotators.systems import (
    landmark_network,
    random_emola,
    random_emotion_llama,
    random_encoders,
    random_text_model,
    random_whisper,
)

SRT = (
    "1\n00:00:00,500 --> 00:00:02,000\nWhat a surprise!\n\n2\n00:00:02,500 --> 00:00:05,000\nHm.\n"
)


@pytest.fixture(scope="module")
def ground(demo_videos: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("systems")
    videos = folder / "videos"
    videos.mkdir()
    shutil.copy(demo_videos / "portrait.mp4", videos)  # no sound
    shutil.copy(clips / "single_face.mp4", videos)  # sound
    (videos / "portrait.srt").write_text(SRT)
    landmark_network(folder / "2d106det.onnx")
    random_emola(folder / "emola")
    random_emotion_llama(folder / "emotion-llama")
    random_encoders(folder)
    random_text_model(folder / "Emollama-tiny")
    return folder


def settings(ground: Path) -> list[str]:
    given = {
        "annotator.landmark_network": ground / "2d106det.onnx",
        "annotator.describe": "true",
        "annotator.action_units": "true",
        "annotator.max_answer_tokens": 4,
        **{f"annotator.{n}": ground / n for n in ("face_mae", "video_mae", "audio_encoder")},
    }
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def output(ground: Path, emolake: Emolake) -> Path:
    models = f"emo-llama-tiny,{ground}/emola,{ground}/emotion-llama,{ground}/Emollama-tiny"
    done = emolake(
        *("annotate", ground / "videos", "--output", ground / "out", "--model", models),
        *settings(ground),
    )
    assert done.returncode == 0, done.stderr
    assert "model random-emola has random weights: its labels mean nothing" in done.stderr
    return ground / "out"


def test_each_window_stands_once_a_model(output: Path) -> None:
    rows = [r for r in read_rows(output, "annotations") if r["track_id"] >= 0]
    keys = [(r["video_id"], r["segment"], r["track_id"], r["window"], r["model"]) for r in rows]
    assert len(set(keys)) == len(keys)
    by_model = {r["model"]: sorted(k[:4] for k in keys if k[4] == r["model"]) for r in rows}
    assert set(by_model) == {"emo-llama-tiny", "random-emola", "random-emotion-llama"}
    assert len({tuple(windows) for windows in by_model.values()}) == 1, "the same windows for all"
    (portrait,) = [r for r in read_rows(output, "videos") if r["uri"].endswith("portrait.mp4")]
    assert portrait["n_windows"] == 3 + 2, "three of the face, two of what is said"


def test_each_model_gives_what_it_can(output: Path) -> None:
    for row in read_rows(output, "annotations"):
        assert sum(dict(row["scores"]).values()) == pytest.approx(1, abs=1e-4)
        silent, said = row["uri"].endswith("portrait.mp4"), row["start_s"] < 5
        if row["model"] == "random-emotion-llama":
            assert isinstance(row["description"], str)
            wanted = (["sound"] if silent else []) + ([] if silent and said else ["transcript"])
            assert (row["absent"] or []) == wanted
        elif row["model"] == "random-emola":
            assert isinstance(row["action_units"], list)
            assert row["transcript"] is None
        elif row["model"] == "emo-llama-tiny":
            assert row["description"] in dict(row["scores"]), "it was taught to say a label"
    texts = {
        (r["start_s"], r["transcript"])
        for r in read_rows(output, "annotations")
        if r["model"] == "random-emotion-llama" and r["uri"].endswith("portrait.mp4")
    }
    assert texts == {(0.0, "What a surprise!"), (2.0, "Hm."), (4.0, "Hm.")}


def test_what_is_said_belongs_to_the_video(output: Path) -> None:
    said = [r for r in read_rows(output, "annotations") if r["model"] == "Emollama-tiny"]
    assert [(r["track_id"], r["window"], r["transcript"]) for r in said] == [
        (-1, 0, "What a surprise!"), (-1, 1, "Hm.")
    ]  # fmt: skip
    assert [(r["start_s"], r["end_s"]) for r in said] == [(0.5, 2.0), (2.5, 5.0)]
    assert all(r["sentiment"] in range(-3, 4) for r in said)


def test_a_model_of_text_alone_looks_for_no_face(ground: Path, emolake: Emolake) -> None:
    done = emolake(
        *("annotate", ground / "videos", "--output", ground / "said", "--quiet"),
        *("--model", ground / "Emollama-tiny", "--set", "windows.speech_seconds=60"),
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(ground / "said", "annotations")
    assert row["transcript"] == "What a surprise! Hm."
    assert read_rows(ground / "said", "tracks") == []
    states = {Path(r["uri"]).name: r["state"] for r in read_rows(ground / "said", "videos")}
    assert states == {"portrait.mp4": "annotated", "single_face.mp4": "no_face"}


def test_tracks_and_report_speak_for_the_first_model(output: Path, emolake: Emolake) -> None:
    for track in read_rows(output, "tracks"):
        assert track["dominant_emotion"] == "happiness"
    page = output.parent / "report.html"
    assert emolake("report", output, "--html", page).returncode == 0
    assert "One lane a face track and model" in page.read_text()


def test_a_transcript_that_is_none_is_told_and_costs_nothing_else(
    ground: Path, emolake: Emolake
) -> None:
    manifest = ground / "manifest.csv"
    (ground / "bad.srt").write_text("Dear diary, nothing.")
    manifest.write_text("uri,transcript_uri\nvideos/single_face.mp4,bad.srt\n")
    done = emolake(
        *("annotate", manifest, "--output", ground / "told", "--quiet"),
        *("--model", ground / "emotion-llama"),
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(ground / "told", "videos")
    assert row["state"] == "annotated"
    assert "its transcript cannot be read: no SubRip" in row["detail"]


def test_what_nobody_wrote_down_is_heard(ground: Path, emolake: Emolake) -> None:
    random_whisper(ground / "whisper")
    done = emolake(
        *("annotate", ground / "videos", "--output", ground / "heard", "--quiet"),
        *("--model", ground / "Emollama-tiny", "--set", f"annotator.recognizer={ground}/whisper"),
    )
    assert done.returncode == 0, done.stderr
    said = {}
    for row in read_rows(ground / "heard", "annotations"):
        said.setdefault(Path(row["uri"]).name, []).append(row["transcript"])
    assert said["portrait.mp4"] == ["What a surprise!", "Hm."], "a transcript comes first"
    assert said["single_face.mp4"]


def test_an_actor_that_cannot_load_its_model_says_so_in_one_line(
    ground: Path, emolake: Emolake
) -> None:
    broken = shutil.copytree(ground / "emola", ground / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    done = emolake(
        *("annotate", ground / "videos", "--output", ground / "none", "--quiet"),
        *("--model", broken, *settings(ground)),
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("emolake: ")]
    assert len(told) == 1
    assert "model.safetensors cannot be read" in told[0]
    assert len(told[0]) < 300


def test_emola_without_its_landmark_network_is_told_before_any_work(
    ground: Path, emolake: Emolake
) -> None:
    done = emolake(
        "annotate", ground / "videos", "--output", ground / "x", "--model", ground / "emola"
    )
    assert done.returncode == 2
    assert "annotator.landmark_network=FILE" in done.stderr
    assert not (ground / "x").exists()
