"""The Ray Jobs API end to end: a head with its dashboard, two worker nodes, and the command line."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

from emolake.jobs.cli import main
from emolake.jobs.commands.submit import annotate_arguments
from emolake.jobs.parser import make_parser
from tests.conftest import ROOT, Emolake, read_rows

MEMORY = 150 * 1024 * 1024
RUN = "submitted"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    patch = pytest.MonkeyPatch()
    # A job's `python` is the cluster's.
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("RAY_metrics_report_interval_ms", "300")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": MEMORY,
            "include_dashboard": True,
            "dashboard_port": port,
        },
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        patch.undo()


@pytest.fixture(scope="module")
def address(cluster: Cluster) -> str:
    return f"http://{cluster.head_node.webui_url}"


@dataclass(frozen=True)
class Submitted:
    """A job that was sent while its metrics were watched."""

    log: str
    output: Path
    metrics: dict[str, float]

    @property
    def record(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.output / "_runs" / RUN / "run.json").read_text())
        return told


@pytest.fixture(scope="module")
def submitted(
    cluster: Cluster, address: str, demo_videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Submitted:
    folder = tmp_path_factory.mktemp("submitted")
    config = folder / "config.yaml"
    config.write_text("faces: {batch_frames: 4}\n")
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "emolake.jobs",
                "submit",
                str(demo_videos),
                "--address",
                address,
            ),
            *("--output", str(folder / "out"), "--config", str(config), "--run-id", RUN),
            *("--submission-id", "demo-job", "--set", "resources.face_actors={max: 2}"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    metrics: dict[str, float] = {}
    while process.poll() is None:
        metrics |= scraped(cluster)
        time.sleep(0.2)
    assert process.stdout is not None
    log = process.stdout.read()
    assert process.returncode == 0, log
    return Submitted(log, folder / "out", metrics)


def scraped(cluster: Cluster) -> dict[str, float]:
    """Samples of emolake that the nodes' Prometheus endpoints tell, by name and what sets them apart."""
    found: dict[str, float] = {}
    for node in cluster.list_all_nodes():
        url = f"http://127.0.0.1:{node.metrics_export_port}/metrics"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.labels.get("run_id") == RUN:
                        kept = ("state", "reason", "stage", "le")
                        apart = [sample.labels[k] for k in kept if k in sample.labels]
                        found[" ".join([sample.name, *apart])] = sample.value
    return found


def test_a_submitted_job_does_what_annotate_does(
    submitted: Submitted, address: str, demo_output: Path, emolake: Emolake
) -> None:
    assert f"run {RUN} -> " in submitted.log, "its log is followed"
    keys = ("uri", "track_id", "window", "emotion")

    def told(folder: Path) -> list[tuple]:
        return sorted(tuple(r[k] for k in keys) for r in read_rows(folder, "annotations"))

    assert told(submitted.output) == told(demo_output)
    config = submitted.record["config"]
    assert config["faces"]["batch_frames"] == 4, "the file's options went along"
    assert config["resources"]["face_actors"] == {"min": 1, "max": 2}
    listed = emolake("jobs", "--address", address, "--json")
    (job,) = [j for j in json.loads(listed.stdout) if j["submission_id"] == "demo-job"]
    assert job["status"] == "SUCCEEDED"
    assert "faces.batch_frames=4" in job["entrypoint"]


def test_metrics_are_told_while_it_runs(submitted: Submitted) -> None:
    seen, result = submitted.metrics, submitted.record
    names = {key.split()[0] for key in seen}
    assert names >= {
        "ray_emolake_segments_total",
        "ray_emolake_video_seconds_total",
        "ray_emolake_stage_seconds_bucket",
        "ray_emolake_busy_fraction",
    }
    states = {"annotated", "no_face", "failed"}
    told = {s: seen.get(f"ray_emolake_segments_total {s}", 0.0) for s in states}
    assert 0 < sum(told.values()) <= result["segments"]
    for state in states:
        assert told[state] <= result["videos"][state]
    assert 0 < seen["ray_emolake_video_seconds_total"] <= result["video_seconds"] + 1e-3
    assert 0 < seen["ray_emolake_busy_fraction faces"] <= 1


def test_its_exit_code_is_the_jobs_own(address: str, emolake: Emolake, tmp_path: Path) -> None:
    done = emolake(
        *("submit", tmp_path / "none", "--output", tmp_path / "out", "--address", address, "--json")
    )
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["exit_code"]) == ("FAILED", 2)
    assert "does not exist" in done.stderr


def test_without_waiting_it_returns_at_once(address: str, emolake: Emolake, tmp_path: Path) -> None:
    done = emolake(
        *("submit", tmp_path / "none", "--output", tmp_path / "out", "--address", address),
        *("--no-wait", "--json"),
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "PENDING"


def test_code_that_is_sent_along_is_what_runs(
    address: str, emolake: Emolake, demo_videos: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    for name in ("emolake", "pipeline", "actors", "jobs"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=leave)
    main = tree / "jobs" / "__main__.py"
    main.write_text(f"print('this is', __file__)\n{main.read_text()}")
    stage = tree / "actors" / "face_child.py"
    told = f"open({str(tmp_path / 'stage')!r}, 'w').write(__file__)\n"
    stage.write_text(stage.read_text().replace("\nif __name__ ==", f"\n{told}if __name__ =="))
    done = emolake(
        *("submit", demo_videos / "portrait.mp4", "--output", tmp_path / "out"),
        *("--address", address, "--working-dir", tree, "--set", "resources.face_actors=1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for place in (done.stdout, (tmp_path / "stage").read_text()):
        assert re.search(r"/working_dir_files/.*/emolake/(jobs|actors)/", place), place
    assert read_rows(tmp_path / "out", "annotations")


def test_options_of_every_kind_go_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("windows: {window_seconds: 4}\n")
    monkeypatch.setenv("EMOLAKE_FACES__MIN_FACE", "32")
    options = make_parser().parse_args(
        [
            *("submit", "s3://a/", "b c.mp4", "--output", "s3://o", "--address", "http://h:1"),
            *("--config", str(config), "--set", "limits.max_attempts=5", "--model", "m"),
            *("--reprocess", "--storage-option", "endpoint_url=http://h:9000"),
        ]
    )
    words = annotate_arguments(options)
    assert words[:6] == ["python", "-m", "emolake.jobs", "annotate", "s3://a/", "b c.mp4"]
    again = make_parser().parse_args(words[3:])
    assert set(again.settings) == {
        'model="m"', "faces.min_face=32", "windows.window_seconds=4.0", "limits.max_attempts=5"
    }  # fmt: skip
    assert again.storage_options == ["endpoint_url=http://h:9000"]
    assert again.reprocess


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--address", "http://127.0.0.1:1"], "does not answer"),
        (["--address", "ray://h:10001"], "is no dashboard's URL"),
        (["--address", "http://h:1", "--storage-option", "secret=x"], "in the job's arguments"),
        (
            [
                "--address",
                "http://h:1",
                "--storage-option",
                "client_kwargs.aws_secret_access_key=x",
            ],
            "in the job's arguments",
        ),
        (
            ["--address", "http://h:1", "--storage-option", "endpoint_url=http://u:x@minio"],
            "in the job's arguments",
        ),
        *(
            (["--address", "http://h:1", "--storage-option", option], "in the job's arguments")
            for option in (
                "client_kwargs.headers.Authorization=Bearer f00",
                "headers.Cookie=f00",
                "passwd=f00",
                "endpoint_url=https://f00@minio",
            )
        ),
        (["--address", "http://h:1", "--set", "facess.min_face=1"], "did you mean"),
        (["--address", "http://h:1", "--working-dir", "/none"], "is no folder"),
        (["--address", "http://h:1", "--runtime-env", "/none"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert main(["submit", str(ROOT), "--output", "/tmp/none", *more]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["http://h/a.mp4?X-Amz-Signature=f00", "https://u:f00@h/a.mp4"])
def test_an_input_that_is_a_secret_is_not_sent(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["submit", name, "--output", "/tmp/none", "--address", "http://h:1"]) == 2
    error = capsys.readouterr().err
    assert "is named with what opens it" in error
    assert "f00" not in error
