"""Another configuration over the same output, killed on the way: each segment is old or new."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from emolake.pipeline.lake.reading import read_annotations, read_videos
from tests.chaos.conftest import Amount
from tests.chaos.harness import SETTINGS, Runs, assert_promise


@pytest.mark.long
def test_a_reader_of_the_ledger_sees_each_segment_once_old_or_new(
    segments: Path, undisturbed: Path, tmp_path: Path, amount: Amount
) -> None:
    other = (*SETTINGS, "--set", "windows.frames_per_window=2")
    runs = Runs(segments, tmp_path / "output")
    runs.finish()
    expected = read_annotations(str(undisturbed)).num_rows
    runs.settings = other
    refused = runs.start()
    _, error = refused.communicate(timeout=240)
    assert refused.returncode == 2
    assert "give --reprocess" in error
    rng = random.Random(5)
    for _ in range(amount.of(1, 5)):
        process = runs.start("--reprocess")
        time.sleep(rng.uniform(6, 12))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=240)
        rows = read_annotations(str(runs.output)).to_pylist()
        keys = Counter((r["uri"], r["segment"], r["track_id"], r["window"]) for r in rows)
        assert max(keys.values()) == 1
        assert len(keys) == expected
        hashes = {(r["uri"], r["segment"]): set() for r in rows}
        for row in rows:
            hashes[row["uri"], row["segment"]].add(row["config_hash"])
        assert all(len(told) == 1 for told in hashes.values())
    runs.finish("--reprocess")
    assert len(set(read_videos(str(runs.output))["config_hash"].to_pylist())) == 1
    fresh = Runs(segments, tmp_path / "fresh", other)
    fresh.finish()
    assert_promise(runs.output, fresh.output)
