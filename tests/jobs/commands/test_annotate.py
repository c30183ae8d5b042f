"""The main job as a user runs it: real clips in, tables out, real Ray."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.conftest import ROOT, S3, Emolake, copy_clips, read_rows
from tests.pipeline.video.test_decode import sound_only

CLIPS = (
    "WolfgangLanger_Pexels.mp4",
    "single_face.mp4",
    "face_noface.mov",
    "noface_face.mov",
    "no_face.mp4",
)
Rows = list[dict[str, Any]]


class Run:
    """One annotate over real clips and bad files, and what it left."""

    def __init__(self, corpus: Path, output: Path, result: dict[str, Any]) -> None:
        self.corpus = corpus
        self.output = output
        self.result = result

    def table(self, name: str) -> Rows:
        return read_rows(self.output, name)

    def of(self, table: str, video: str) -> Rows:
        rows = [r for r in self.table(table) if Path(r["uri"]).name == video]
        return sorted(rows, key=lambda r: (r["segment"], r.get("track_id"), r.get("window")))


@pytest.fixture(scope="module")
def run(clips, emolake, tmp_path_factory) -> Run:
    ground = tmp_path_factory.mktemp("run")
    corpus = copy_clips(clips, ground / "corpus", *CLIPS)
    whole = (clips / "single_face.mp4").read_bytes()
    (corpus / "half.mp4").write_bytes(whole[: len(whole) // 2])
    whole = (clips / "WolfgangLanger_Pexels.mp4").read_bytes()
    (corpus / "half_readable.mp4").write_bytes(whole[: len(whole) // 2])
    (corpus / "empty.mp4").write_bytes(b"")
    (corpus / "text.mp4").write_text("not a video\n" * 50)
    sound_only(corpus / "sound.mp4")
    manifest = ground / "manifest.csv"
    manifest.write_text("uri\nabsent.mp4\n")
    output = ground / "output"
    done = emolake("annotate", corpus, manifest, "--output", output, "--json")
    assert done.returncode == 0, done.stderr
    return Run(corpus, output, json.loads(done.stdout))


def test_the_person_who_cries_then_smiles_is_read_so(run: Run) -> None:
    tracks = run.of("tracks", "WolfgangLanger_Pexels.mp4")
    assert len([t for t in tracks if t["end_s"] - t["start_s"] > 1]) <= 2
    windows = run.of("annotations", "WolfgangLanger_Pexels.mp4")
    late = [w["emotion"] for w in windows if w["start_s"] > 11]
    early = [w["emotion"] for w in windows if w["end_s"] < 5]
    assert Counter(late)["happiness"] > len(late) / 2
    assert early
    assert Counter(early)["happiness"] <= len(early) / 4


def test_the_man_who_starts_to_smile_ends_happy(run: Run) -> None:
    assert run.of("annotations", "single_face.mp4")[-1]["emotion"] == "happiness"


def test_tracks_begin_and_end_with_their_faces(run: Run) -> None:
    (before,) = run.of("tracks", "face_noface.mov")
    assert before["end_s"] <= 2.6
    (after,) = run.of("tracks", "noface_face.mov")
    assert 3.7 <= after["start_s"] <= 4.3


def test_boxes_agree_with_the_truth(run: Run, clips) -> None:
    truth = json.loads((clips / "truth.json").read_text())["clips"]
    for name in ("WolfgangLanger_Pexels.mp4", "single_face.mp4", "face_noface.mov"):
        told = truth[name]
        wanted = told["tracks"][0]
        at = wanted["mid_s"]
        windows = run.of("annotations", name)
        window = next(w for w in windows if w["start_s"] <= at <= w["end_s"])
        box = [window["bbox"][k] for k in ("x1", "y1", "x2", "y2")]
        scale = [told["width"], told["height"]] * 2
        true = [v / s for v, s in zip(wanted["box_mid"], scale, strict=True)]
        assert _iou(box, true) > 0.4, name


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (area - width * height)


def test_a_video_without_a_face_has_a_state_and_no_annotation(run: Run) -> None:
    (row,) = run.of("videos", "no_face.mp4")
    assert (row["state"], row["reason"], row["n_windows"]) == ("no_face", None, 0)
    assert run.of("annotations", "no_face.mp4") == []


def test_each_bad_file_ends_as_one_row_with_its_reason(run: Run) -> None:
    told = {
        name: [(r["state"], r["reason"]) for r in run.of("videos", name)]
        for name in ("half.mp4", "empty.mp4", "text.mp4", "sound.mp4", "absent.mp4")
    }
    assert told == {
        "half.mp4": [("failed", "truncated")],
        "empty.mp4": [("failed", "not_a_video")],
        "text.mp4": [("failed", "not_a_video")],
        "sound.mp4": [("failed", "no_video_stream")],
        "absent.mp4": [("failed", "not_found")],
    }


def test_a_truncated_video_is_annotated_as_far_as_it_goes(run: Run) -> None:
    (row,) = run.of("videos", "half_readable.mp4")
    assert (row["state"], row["reason"]) == ("annotated", "truncated")
    whole = run.of("annotations", "WolfgangLanger_Pexels.mp4")
    for ours, theirs in zip(run.of("annotations", "half_readable.mp4")[:3], whole, strict=False):
        assert (ours["start_s"], ours["emotion"]) == (theirs["start_s"], theirs["emotion"])


def test_the_result_accounts_for_every_video(run: Run) -> None:
    result = run.result
    assert result["videos"] == {
        "total": 11, "annotated": 5, "no_face": 1, "failed": 5, "skipped": 0
    }  # fmt: skip
    assert result["segments"] == 11 == len(run.table("videos"))
    assert result["windows"] == len(run.table("annotations"))
    assert result["tracks"] == len(run.table("tracks"))
    assert set(result["stages"]) == {"faces", "annotate", "write"}
    for stage in result["stages"].values():
        assert 0 < stage["busy_fraction"] <= 1
        assert stage["workers"] >= 1
    assert result["model"]["name"] == "emo-llama-tiny"
    stored = json.loads((run.output / "_runs" / result["run_id"] / "run.json").read_text())
    assert stored == result


def test_rows_keep_the_contract(run: Run) -> None:
    rows = run.table("annotations")
    keys = [(r["video_id"], r["segment"], r["track_id"], r["window"]) for r in rows]
    assert len(keys) == len(set(keys))
    for row in rows:
        scores = dict(row["scores"])
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert row["emotion"] == max(scores, key=lambda k: scores[k])
        assert row["confidence"] == pytest.approx(scores[row["emotion"]])
        assert 0 <= row["bbox"]["x1"] < row["bbox"]["x2"] <= 1
        assert row["start_s"] <= row["end_s"]
        assert 1 <= row["n_frames"] <= 8
        assert row["config_hash"] == run.result["config_hash"]
        assert row["model_revision"] == run.result["model"]["revision"]


def test_when_did_people_smile_is_one_query(run: Run) -> None:
    found = duckdb.sql(
        f"""
        SELECT uri, start_s, end_s, confidence
        FROM read_parquet('{run.output}/annotations/*/*/*.parquet', hive_partitioning = true)
        WHERE emotion = 'happiness' ORDER BY uri, start_s
        """
    ).fetchall()
    assert any(uri.endswith("single_face.mp4") for uri, *_ in found)


def test_a_second_run_does_nothing_and_says_so(run: Run, emolake: Emolake) -> None:
    before = sorted(p for p in run.output.rglob("*.parquet"))
    done = emolake("annotate", run.corpus, "--output", run.output)
    assert done.returncode == 0, done.stderr
    assert "nothing was left to do" in done.stdout
    assert sorted(p for p in run.output.rglob("*.parquet")) == before


def test_plan_says_what_is_done_and_why_the_rest_is_skipped(run: Run, emolake: Emolake) -> None:
    done = emolake("plan", run.corpus, "--output", run.output, "--json")
    told = json.loads(done.stdout)
    assert told["videos"] == {"total": 10, "todo": 0, "skipped": 10}
    assert told["skipped_because"] == {"done": 6, "failed before": 4}
    again = emolake("plan", run.corpus, "--output", run.output, "--json", "--retry-failed")
    assert json.loads(again.stdout)["todo_because"] == {"retry": 4}


def test_plan_estimates_by_a_run_over_a_sample(run: Run, emolake: Emolake, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("{currency: EUR, cpu_hour: 1}")
    ask = ("plan", run.corpus, "--output", tmp_path / "o", "--estimate", run.output)
    told = json.loads(emolake(*ask, "--prices", prices, "--json").stdout)["estimate"]
    assert told["video_hours"] * 3600 == pytest.approx(run.result["video_seconds"], rel=0.5)
    assert told["from_run"] == run.result["run_id"]
    assert told["money"] == pytest.approx(told["cost"]["cpu_seconds"] / 3600)
    lines = emolake(*ask, "--hours", "100").stdout
    assert "100.00 h of video take" in lines
    none = emolake("plan", run.corpus, "--output", tmp_path / "o", "--estimate", tmp_path)
    assert (none.returncode, "holds no run over videos" in none.stderr) == (2, True)


def test_status_counts_videos_failures_and_runs(run: Run, emolake: Emolake) -> None:
    told = json.loads(emolake("status", run.output, "--json").stdout)
    assert told["videos"] == {"total": 11, "annotated": 5, "no_face": 1, "failed": 5}
    assert told["failures"] == {
        "not_a_video": 2, "truncated": 1, "no_video_stream": 1, "not_found": 1
    }  # fmt: skip
    assert run.result["run_id"] in [r["run_id"] for r in told["runs"]]
    assert "not_a_video" in emolake("status", run.output).stdout


def test_another_configuration_is_refused_unless_told_to_reprocess(
    run: Run, emolake: Emolake
) -> None:
    done = emolake("annotate", run.corpus, "--output", run.output, "--set", "decode.sample_fps=2")
    assert done.returncode == 2
    assert "--reprocess" in done.stderr


@pytest.fixture(scope="module")
def few(clips, tmp_path_factory) -> Path:
    return copy_clips(clips, tmp_path_factory.mktemp("few"), "single_face.mp4", "face_noface.mov")


def test_a_changed_file_is_done_again_and_replaces_its_rows(
    few: Path, clips, emolake: Emolake, tmp_path
) -> None:
    corpus = copy_clips(few, tmp_path / "corpus", "single_face.mp4", "face_noface.mov")
    output = tmp_path / "output"
    assert emolake("annotate", corpus, "--output", output, "--quiet").returncode == 0
    old = {r["video_id"] for r in read_rows(output, "videos")}
    shutil.copy(clips / "no_face.mp4", corpus / "single_face.mp4")
    done = emolake("annotate", corpus, "--output", output, "--json")
    told = json.loads(done.stdout)
    assert told["videos"] == {
        "total": 2, "annotated": 0, "no_face": 1, "failed": 0, "skipped": 1
    }  # fmt: skip
    rows = read_rows(output, "videos")
    assert {Path(r["uri"]).name: r["state"] for r in rows} == {
        "single_face.mp4": "no_face",
        "face_noface.mov": "annotated",
    }
    assert len(rows) == 2
    assert len(old & {r["video_id"] for r in rows}) == 1
    assert {Path(r["uri"]).name for r in read_rows(output, "annotations")} == {"face_noface.mov"}


def comparable(rows: Rows) -> dict[tuple[Any, ...], Any]:
    return {
        (Path(r["uri"]).name, r["segment"], r["track_id"], r["window"]): (
            r["start_s"], r["end_s"], r["n_frames"], r["emotion"], dict(r["scores"])
        )
        for r in rows
    }  # fmt: skip


def assert_same(rows: Rows, others: Rows) -> None:
    ours, theirs = comparable(rows), comparable(others)
    assert ours.keys() == theirs.keys()
    for key, (*facts, scores) in ours.items():
        *other_facts, other_scores = theirs[key]
        assert facts == other_facts
        assert scores == pytest.approx(other_scores, abs=1e-4)


def test_annotations_do_not_depend_on_batches_actors_or_order(
    run: Run, few: Path, emolake: Emolake, tmp_path
) -> None:
    output = tmp_path / "output"
    settings = (
        "annotator.micro_batch=1",
        "faces.batch_frames=3",
        "resources.face_actors=2",
        "resources.segments_per_commit=1",
    )
    files = [few / "single_face.mp4", few / "face_noface.mov"]
    pairs = [part for setting in settings for part in ("--set", setting)]
    done = emolake("annotate", *reversed(files), "--output", output, "--quiet", *pairs)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in files}
    theirs = [r for r in run.table("annotations") if Path(r["uri"]).name in names]
    assert_same(read_rows(output, "annotations"), theirs)


def test_s3_in_and_out_gives_the_same_rows(
    run: Run, few: Path, s3: S3, emolake: Emolake, tmp_path
) -> None:
    fs = s3.fs()
    fs.put(str(few) + "/", f"{s3.bucket}/videos/", recursive=True)
    fs.pipe_file(f"{s3.bucket}/videos/notes.txt", b"no video")
    arguments = ("annotate", f"s3://{s3.bucket}/videos/", "--output", f"s3://{s3.bucket}/lake")
    done = emolake(*arguments, "--json", env=s3.env)
    assert done.returncode == 0, done.stderr
    fs.invalidate_cache()
    local = tmp_path / "lake"
    fs.get(f"{s3.bucket}/lake", str(local), recursive=True)
    names = {path.name for path in few.iterdir()}
    theirs = [r for r in run.table("annotations") if Path(r["uri"]).name in names]
    ours = read_rows(local, "annotations")
    assert {r["uri"] for r in ours} == {f"s3://{s3.bucket}/videos/{name}" for name in names}
    assert_same(ours, theirs)
    cost = json.loads(done.stdout)["cost"]
    listed = fs.find(f"{s3.bucket}/videos", detail=True)
    videos = sum(o["size"] for name, o in listed.items() if not name.endswith(".txt"))
    tables = sum(path.stat().st_size for path in local.rglob("*.parquet"))
    assert videos <= cost["bytes_read"] < 8 * videos
    assert tables <= cost["bytes_written"] < 2 * tables + 4096
    assert len(names) * 3 < cost["requests"] < 400
    assert (cost["cpu_seconds"] > 1, cost["gpu_seconds"]) == (True, 0)
    again = emolake(*arguments, "--json", env=s3.env)
    assert json.loads(again.stdout)["videos"]["skipped"] == 2
    for path in local.rglob("*"):
        assert path.is_dir() or b"planted-secret" not in path.read_bytes()
    assert "planted-secret" not in done.stdout + done.stderr


def test_a_presigned_url_is_its_object_whoever_signs_it_and_its_signature_is_nowhere(
    few: Path, s3: S3, emolake: Emolake, tmp_path: Path
) -> None:
    fs = s3.fs()
    fs.put(str(few / "single_face.mp4"), f"{s3.bucket}/signed/single_face.mp4")
    fs.pipe_file(f"{s3.bucket}/signed/broken.mp4", b"no video at all")
    output = tmp_path / "lake"
    seen = ""
    for expires in (3600, 7200):
        names = ("single_face.mp4", "broken.mp4", "gone.mp4")
        urls = [fs.url(f"{s3.bucket}/signed/{name}", expires) for name in names]
        assert all("Signature=" in url for url in urls)
        (tmp_path / "m.jsonl").write_text("".join(json.dumps({"uri": u}) + "\n" for u in urls))
        done = emolake("annotate", tmp_path / "m.jsonl", "--output", output, "--json")
        assert done.returncode in (0, 3), done.stderr
        seen += done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["videos"]["skipped"] == 3, "a new signature is no new video"
    secrets = [re.search("Signature=([^&]+)", url)[1] for url in urls]
    uris = {row["uri"] for row in read_rows(output, "videos")}
    assert uris == {f"{s3.endpoint}/{s3.bucket}/signed/{name}" for name in names}
    assert {r["uri"] for r in read_rows(output, "annotations")} == {
        f"{s3.endpoint}/{s3.bucket}/signed/single_face.mp4"
    }
    files = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    for secret in (*secrets, "Signature=A"):
        assert secret not in seen
        assert not any(secret.encode() in data for data in files)


def test_storage_options_reach_the_workers_and_stay_out_of_the_record(
    few: Path, s3: S3, emolake: Emolake
) -> None:
    s3.fs().put(str(few / "single_face.mp4"), f"{s3.bucket}/one/single_face.mp4")
    options = {
        "endpoint_url": s3.endpoint,
        "key": "planted-key",
        "secret": "planted-secret-too",
    }
    pairs = [p for k, v in options.items() for p in ("--storage-option", f"{k}={v}")]
    done = emolake(
        "annotate",
        f"s3://{s3.bucket}/one/",
        "--output",
        f"s3://{s3.bucket}/lake2",
        "--json",
        *pairs,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["videos"]["annotated"] == 1
    assert told["storage_options"] == ["endpoint_url", "key", "secret"]
    assert "planted-secret-too" not in done.stdout + done.stderr
    session = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/session_latest/logs")
    logs = [p for p in session.rglob("*") if p.is_file()]
    assert logs
    for path in logs:
        assert b"planted-secret-too" not in path.read_bytes(), path


def test_a_bucket_that_is_not_there_is_a_user_mistake(few: Path, s3: S3, emolake: Emolake) -> None:
    output = ("--output", "s3://no-such-bucket/lake")
    done = emolake("annotate", few, *output, env=s3.env)
    assert done.returncode == 2
    assert "no-such-bucket" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_profile_is_a_user_mistake(few: Path, emolake: Emolake, tmp_path: Path) -> None:
    nobody = {"AWS_PROFILE": "nobody", "AWS_CONFIG_FILE": str(tmp_path / "none")}
    done = emolake("plan", few, "--output", "s3://bucket/lake", env=nobody)
    assert done.returncode == 2
    assert "nobody" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_too_many_failures_are_exit_code_3(emolake: Emolake, tmp_path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    limit = ("--set", "limits.max_failed_fraction=0.5")
    done = emolake("annotate", tmp_path / "bad.mp4", "--output", tmp_path / "out", *limit)
    assert done.returncode == 3
    assert read_rows(tmp_path / "out", "videos")[0]["reason"] == "not_a_video"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_the_next_run_resumes(
    few: Path, emolake: Emolake, tmp_path, how: signal.Signals
) -> None:
    output = tmp_path / "out"
    # Work enough to be interrupted in: every frame, each searched in full.
    slow = ("--set", "decode.sample_fps=30", "--set", "faces.detect_every_seconds=0")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "emolake.jobs",
            "annotate",
            str(few),
            "--output",
            str(output),
            *slow,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(output.glob("_lease/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(4 if how == signal.SIGINT else 2)
    os.kill(process.pid, how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "resumes" in error
    done = emolake("annotate", few, "--output", output, "--json", *slow)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(output, "videos")) == 2
    keys = [(r["uri"], r["track_id"], r["window"]) for r in read_rows(output, "annotations")]
    assert len(keys) == len(set(keys)) > 0


def test_a_killed_run_has_a_record_and_another_precision_is_refused(
    few: Path, emolake: Emolake, tmp_path: Path
) -> None:
    output = tmp_path / "lake"
    command = [sys.executable, "-m", "emolake.jobs", "annotate", str(few), "--output", str(output)]
    settings = ("--set", "resources.segments_per_commit=1", "--set", "decode.segment_seconds=2")
    process = subprocess.Popen(
        [*command, *settings, "--run-id", "killed", "--quiet"], start_new_session=True
    )
    while process.poll() is None and not list(output.glob("videos/*/*/*.parquet")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    record = json.loads((output / "_runs" / "killed" / "run.json").read_text())
    assert (record["state"], record["precision"]) == ("running", "float32")
    rows = read_rows(output, "videos")
    assert {row["run_id"] for row in rows} == {"killed"}
    assert {row["config_hash"] for row in rows} == {record["config_hash"]}
    there = output / "_runs" / "killed" / "run.json"
    there.write_text(json.dumps(record | {"precision": "bfloat16"}))
    refused = emolake("annotate", few, "--output", output, *settings)
    assert refused.returncode == 2
    assert "run killed computed the rows of this output in bfloat16" in refused.stderr
    there.write_text(json.dumps(record))
    done = emolake("annotate", few, "--output", output, *settings, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "ended"
