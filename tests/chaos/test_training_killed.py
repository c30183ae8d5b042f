"""A process of a training under Ray Train is killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import ROOT

EPOCH_STEPS = 20


def recipe(fer2013: Path, folder: Path) -> Path:
    table = pq.read_table(fer2013 / "fer2013_valid.parquet", columns=["image", "label"])
    for name, start, count in (("train", 0, 40 * EPOCH_STEPS), ("valid", 2000, 100)):
        pq.write_table(table.slice(start, count), folder / f"{name}.parquet")
    stage = {
        "name": "adapt", "trains": "model", "epochs": 3, "batch_size": 40, "warmup_steps": 1,
        "stem_learning_rate_factor": 0.0, "learning_rate": 5e-4, "checkpoint_steps": 4,
        "precision": "float32",
    }  # fmt: skip
    told = {
        "name": "mine", "start": {"model": "emo-llama-tiny"}, "adapter": {"rank": 4},
        "data": {
            "train": str(folder / "train.parquet"), "valid": str(folder / "valid.parquet"),
            "cache": str(folder / "faces"),
        },
        "stages": [stage], "workers": {"count": 2, "cpus": 0.5},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(told))
    return folder / "recipe.yaml"


def losses(output: Path) -> list[tuple[int, float]]:
    path = output / "training" / "adapt-metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(told["step"], told["loss"]) for told in map(json.loads, lines)]


@pytest.mark.long
def test_a_killed_worker_is_started_again_and_the_losses_are_the_same(
    fer2013: Path, tmp_path: Path
) -> None:
    file = recipe(fer2013, tmp_path)

    def started(output: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "emolake.jobs", "tune", "--config", file, "--output", output, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    whole = started(tmp_path / "whole")
    told, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0
    struck = started(tmp_path / "struck")
    deadline = time.monotonic() + 600
    while len(losses(tmp_path / "struck")) < EPOCH_STEPS + 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    killed = subprocess.run(["pkill", "-9", "-o", "-f", "ray::RayTrainWorker"], check=False)
    assert killed.returncode == 0, "there is a worker to kill"
    told_again, lines = struck.communicate(timeout=600)
    assert struck.returncode == 0, lines
    assert "adapt: resuming at step" in lines
    assert losses(tmp_path / "struck") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 3 * EPOCH_STEPS
    names = ("n", "war", "uar", "ece")
    assert [json.loads(told)[k] for k in names] == [json.loads(told_again)[k] for k in names]
