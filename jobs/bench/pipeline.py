"""The whole job, stage by stage, and the command line's start."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emolake.jobs.bench.clips import repeated
from emolake.jobs.bench.measurement import COMMAND, Measurement, less_is_better, more_is_better
from emolake.jobs.bench.store import watched_ray
from emolake.pipeline.corpus.estimate import POOLS

_TIMES = 12
_STORE_MB = 500


def bench_pipeline(clips: list[Path], scratch: Path, options: Namespace) -> Iterator[Measurement]:
    """The whole job over repeated clips, then a run with nothing to do and the start alone."""
    if options.small:
        from emolake.jobs.bench.small import bench_small

        yield from bench_small(clips, scratch)
        return
    corpus, output = repeated(clips, scratch / "corpus", _TIMES), scratch / "output"
    job = [*COMMAND, "annotate", str(corpus), "--output", str(output), "--quiet", "--json"]
    pools = ("--set", "resources.face_actors=1", "--set", "resources.annotation_actors=1")
    with watched_ray(4, _STORE_MB) as seen:
        done = subprocess.run([*job, *pools], check=True, stdout=subprocess.PIPE, env=seen.env)
    run = json.loads(done.stdout)
    yield from _stages(run)
    yield less_is_better("object store, peak / its size", seen.stored_mb, _STORE_MB, "MB", 1.0)
    segments = run["segments"]
    yield less_is_better("blocks there at once / segments", seen.blocks, segments, "blocks", 1.0)
    print(advice(run), file=sys.stderr)
    best = dict.fromkeys(("python", "help", "again"), math.inf)
    for name, arguments in {
        "python": [sys.executable, "-c", "pass"],
        "help": [*COMMAND, "--help"],
        "again": job,
    }.items():
        for _ in range(3):
            started = time.monotonic()
            subprocess.run(arguments, check=True, capture_output=True)
            best[name] = min(best[name], time.monotonic() - started)
    yield less_is_better("emolake --help / bare python", best["help"], best["python"], "s", 0.1)
    yield less_is_better(
        "a run with nothing to do / the run before", best["again"], run["wall_seconds"], "s", 2.0
    )


def _stages(run: dict[str, Any]) -> Iterator[Measurement]:
    """Rows a second while a stage is busy, against rows a second of the run after its start: the stage
    whose two are nearest bounds the run."""
    seconds = run["wall_seconds"] - run["start_seconds"]
    for stage, told in run["stages"].items():
        yield more_is_better(
            f"{stage}: rows a busy second / rows a second",
            told["rows_per_busy_second"] * told["workers"], told["rows"] / seconds, "rows/s", 0.5,
        )  # fmt: skip


def advice(run: dict[str, Any]) -> str:
    """Which stage bounds a run, and the knob and value that would move it. run: a run.json."""
    stages = run["stages"]
    busy = {pool: stages[pool]["busy_seconds"] / stages[pool]["workers"] for pool in POOLS}
    bound = max(POOLS, key=lambda pool: busy[pool])
    running = max(run["wall_seconds"] - run["start_seconds"], 1e-9)
    part = min(busy[bound] / running, 1.0)
    balance = stages["faces"]["busy_seconds"] / max(stages["annotate"]["busy_seconds"], 1e-9)
    said = f"bound by {bound}, busy {100 * part:.0f} % of the time since its start; "
    if part < 0.6:
        return said + "it waits for its input: look at the storage, or let the run be longer"
    if bound == "faces":
        wanted = max(
            math.ceil(balance * stages["annotate"]["workers"]), stages["faces"]["workers"] + 1
        )
        return said + f"resources.face_actors={wanted} would keep the annotation actors as busy"
    wanted = max(math.ceil(stages["faces"]["workers"] / balance), stages["annotate"]["workers"] + 1)
    return said + f"resources.annotation_actors={wanted} would keep up with the face actors"
