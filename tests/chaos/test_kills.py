"""Processes killed while they work: the driver, actors, their children, write tasks."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Amount
from tests.chaos.harness import SEGMENTS, Runs, assert_promise, kill_at_random
from tests.conftest import read_rows


def test_the_driver_killed_at_random_moments(
    segments: Path, undisturbed: Path, tmp_path: Path, amount: Amount
) -> None:
    rng = random.Random(1)
    kills, rounds = 0, 0
    while kills < amount.of(2, 20):
        runs = Runs(segments, tmp_path / f"output{rounds}")
        rounds += 1
        while kills < amount.of(2, 20):
            process = runs.start()
            time.sleep(rng.uniform(3, 14))
            if process.poll() is not None:
                break
            how = rng.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
            if not list(runs.output.glob("_lease/*.json")):
                how = signal.SIGKILL  # Python itself is still starting, and knows no manners yet
            os.kill(process.pid, how)
            process.communicate(timeout=240)
            assert process.returncode in (130, -signal.SIGKILL)
            kills += 1
        runs.finish()
        assert_promise(runs.output, undisturbed)
    assert len(read_rows(undisturbed, "videos")) >= SEGMENTS


VICTIMS = {
    "face actor": "ray::MapWorker(MapBatches(FaceActor))",
    "face child": "emolake.actors.face_child",
    "annotation actor": "ray::MapWorker(MapBatches(AnnotationActor))",
    "task": "ray::MapBatches(write_segments)",
}


@pytest.mark.long
@pytest.mark.parametrize("who", VICTIMS)
def test_workers_killed_at_random_moments(
    segments: Path, undisturbed: Path, tmp_path: Path, amount: Amount, who: str
) -> None:
    runs = Runs(segments, tmp_path / "output")
    name = VICTIMS[who]
    killed = list(
        kill_at_random(runs, lambda line: name in line, amount.of(2, 5), random.Random(2))
    )
    runs.finish()
    assert_promise(runs.output, undisturbed)
    if who != "task":  # a write takes milliseconds and may never be met
        assert killed
