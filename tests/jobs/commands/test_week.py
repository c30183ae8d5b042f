"""A week of scheduled runs over a bucket in which objects come, change and go."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from emolake.jobs.cli import main
from emolake.jobs.graph.start import start_ray, stop_ray
from emolake.pipeline.config import ResourcesConfig
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.storage.files import Storage
from tests.conftest import S3


class Week:
    """The bucket, the lake in it, and the command that the schedule runs, on a Ray that stays up."""

    def __init__(self, s3: S3, clips: dict[str, bytes]) -> None:
        self.fs = s3.fs()
        self.root = f"{s3.bucket}/week"
        self.clips = clips

    def put(self, name: str, clip: str) -> None:
        self.fs.pipe_file(f"{self.root}/videos/{name}.mp4", self.clips[clip])

    def remove(self, name: str) -> None:
        self.fs.rm_file(f"{self.root}/videos/{name}.mp4")

    def start(self, run_id: str, *more: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        uri = f"s3://{self.root}"
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(
                [
                    *("annotate", f"{uri}/videos/", "--output", f"{uri}/lake"),
                    *("--run-id", run_id, "--quiet", "--json", *more),
                ]
            )
        return code, out.getvalue(), err.getvalue()

    def run(self, run_id: str, *more: str) -> dict[str, Any]:
        code, out, err = self.start(run_id, *more)
        assert code == 0, err
        told: dict[str, Any] = json.loads(out)
        return told

    def table(self, name: str) -> list[dict[str, Any]]:
        self.fs.invalidate_cache()
        path = f"{self.root}/lake/{name}"
        rows = ds.dataset(path, filesystem=self.fs, format="parquet", partitioning="hive")
        return rows.to_table().to_pylist()

    def check(self, states: dict[str, str]) -> None:
        """Every object ever done is in its one state, and no row stands twice."""
        told = {Path(r["uri"]).stem: r["state"] for r in self.table("videos")}
        assert told == states
        assert len(self.table("videos")) == len(states)
        rows = self.table("annotations")
        keys = Counter((r["uri"], r["segment"], r["track_id"], r["window"]) for r in rows)
        assert max(keys.values()) == 1
        with_faces = {Path(r["uri"]).stem for r in rows}
        assert with_faces == {name for name, state in states.items() if state == "annotated"}


@pytest.fixture
def week(s3: S3, demo_videos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Week]:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    clips = {name: (demo_videos / f"{name}.mp4").read_bytes() for name in ("portrait", "no_face")}
    start_ray(ResourcesConfig())
    try:
        yield Week(s3, clips)
    finally:
        stop_ray()


def test_seven_nights(week: Week) -> None:
    week.put("a", "portrait")
    week.put("b", "no_face")
    monday = week.run("monday")
    assert monday["videos"]["annotated"] == 1
    week.check({"a": "annotated", "b": "no_face"})

    tuesday = week.run("tuesday")
    assert (tuesday["segments"], tuesday["videos"]["skipped"]) == (0, 2), "nothing came"

    week.put("b", "portrait")  # changed
    week.put("c", "no_face")  # new
    wednesday = week.run("wednesday")
    assert (wednesday["segments"], wednesday["videos"]["skipped"]) == (2, 1)
    week.check({"a": "annotated", "b": "annotated", "c": "no_face"})
    assert {r["run_id"] for r in week.table("annotations") if "/b.mp4" in r["uri"]} == {"wednesday"}

    week.remove("a")  # what is gone from the archive stays in the lake
    week.put("d", "portrait")
    # Thursday's machine never started; Friday catches up with both days.
    week.put("e", "no_face")
    friday = week.run("friday")
    assert friday["segments"] == 2
    states = {"a": "annotated", "b": "annotated", "c": "no_face", "d": "annotated", "e": "no_face"}
    week.check(states)

    # A trigger that fires twice: once more after the end, and once while another run has the lake.
    again = week.run("friday")
    assert again["segments"] == 0
    lease = Lease.acquire(Lake.at(f"s3://{week.root}/lake", Storage()), "saturday")
    try:
        code, _, told = week.start("saturday")
        assert code == 2
        assert "saturday" in told
        assert "since" in told
    finally:
        lease.release()
    week.check(states)

    week.put("f", "no_face")
    time.sleep(1.1)  # S3 tells whole seconds
    since = datetime.now(UTC).isoformat(timespec="seconds")
    time.sleep(1.1)
    week.put("g", "portrait")
    sunday = week.run("sunday", "--since", since)
    assert sunday["segments"] == 1, "f is older than that"
    assert sunday["skipped_because"] == {"older than --since": 5}
    week.check(states | {"g": "annotated"})
