"""Two runs reach for one output."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.harness import Runs, assert_promise
from tests.conftest import read_rows


def lease(output: Path) -> dict[str, object] | None:
    files = sorted(output.glob("_lease/*.json"))
    return json.loads(files[-1].read_text()) if files else None


def wait_for_commits(runs: Runs, count: int) -> None:
    deadline = time.monotonic() + 300
    while runs.committed() < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert runs.committed() >= count


def test_the_second_of_two_runs_stops_at_once_and_says_why(
    segments: Path, undisturbed: Path, tmp_path: Path
) -> None:
    runs = Runs(segments, tmp_path / "output")
    first = runs.start("--run-id", "the-first")
    wait_for_commits(runs, 1)
    second = runs.start()
    _, error = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "in use by run the-first" in error
    assert "since 2" in error
    assert len(error.strip().splitlines()) == 1
    _, error = first.communicate(timeout=300)
    assert first.returncode == 0, error
    assert_promise(runs.output, undisturbed)


@pytest.mark.long
def test_a_paused_holder_that_wakes_up_commits_nothing(
    segments: Path, undisturbed: Path, tmp_path: Path
) -> None:
    runs = Runs(segments, tmp_path / "output")
    sleeper = runs.start("--run-id", "sleeper")
    wait_for_commits(runs, 3)
    os.killpg(sleeper.pid, signal.SIGSTOP)
    # Another machine's holder, without one; a second of silence for a minute.
    (path,) = runs.output.glob("_lease/*.json")
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"machine": "another", "ttl_s": 1.0}))
    runs.finish("--run-id", "heir")
    os.killpg(sleeper.pid, signal.SIGCONT)
    _, error = sleeper.communicate(timeout=300)
    heirs = [r for r in read_rows(runs.output, "videos") if r["run_id"] == "heir"]
    assert heirs
    assert sleeper.returncode in (0, 1), error
    if sleeper.returncode:
        assert "was lost to lease 2" in error
    assert lease(runs.output) is not None
    assert_promise(runs.output, undisturbed)
