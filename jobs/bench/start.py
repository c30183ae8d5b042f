"""From the command to the first row and the exit, for one clip; and what the start is made of."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from emolake.jobs.bench.clips import loop_clip
from emolake.jobs.bench.measurement import COMMAND, Measurement, less_is_better

_CLIP_S = 20.0
_EXIT_S, _FIRST_ROW_S = 12.0, 8.0
_TIMES = 3
_LOOK_EVERY_S = 0.02

_OURS = """
from emolake.jobs.graph.start import start_ray
from emolake.pipeline.config import ResourcesConfig
start_ray(ResourcesConfig(face_actors=1))
"""
_RAYS = """
import ray
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
"""
_FIRST_BATCH = """
import ray.data
class Same:
    def __call__(self, batch):
        return batch
ray.data.range(1).map_batches(Same, concurrency=1).take_all()
"""
_LEAN = """
from emolake.pipeline.models.inference_only import import_for_inference
import_for_inference()
"""
_LOAD = """
from emolake.pipeline.annotators.base import load_annotator
from emolake.pipeline.config import AnnotatorConfig
load_annotator("emo-llama-tiny", AnnotatorConfig(), "cpu")
"""


def bench_start(clips: list[Path], scratch: Path, _options: Namespace) -> Iterator[Measurement]:
    """The peers of the first two are what they may take; of the rest, the same without what was left out of
    Ray and of transformers. Each is the best of three."""
    clip = scratch / f"clip{clips[0].suffix}"
    loop_clip(clips[0], clip, _CLIP_S)
    runs = [_run(clip, scratch / f"output-{k}") for k in range(_TIMES)]
    exit_s, first_s, told = min(runs, key=lambda run: run[0])
    yield less_is_better(f"a clip of {_CLIP_S:.0f} s, to exit / goal", exit_s, _EXIT_S, "s", 1.0)
    yield less_is_better("the same, to its first row / goal", first_s, _FIRST_ROW_S, "s", 1.0)
    busy = sum(stage["busy_seconds"] for stage in told["stages"].values())
    yield less_is_better("the same, to exit / its stages' work", exit_s, busy, "s", 0.0)
    yield less_is_better("Ray is up / as it comes", _best(_OURS), _best(_RAYS), "s", 1.0)
    ours, theirs = _best(_OURS + _FIRST_BATCH), _best(_RAYS + _FIRST_BATCH)
    yield less_is_better("an actor's first batch / as Ray comes", ours, theirs, "s", 1.0)
    ours, theirs = _best(_LEAN + _LOAD), _best(_LOAD)
    yield less_is_better("the model is loaded / imports as they come", ours, theirs, "s", 1.0)


def _run(clip: Path, output: Path) -> tuple[float, float, dict[str, dict[str, dict[str, float]]]]:
    """Seconds to its exit and to its first commit, and the run's record."""
    job = [*COMMAND, "annotate", str(clip), "--output", str(output), "--quiet", "--json"]
    started, first_s = time.monotonic(), None
    process = subprocess.Popen(job, stdout=subprocess.PIPE)
    while process.poll() is None:
        if first_s is None and any((output / "videos").glob("**/*.parquet")):
            first_s = time.monotonic() - started
        time.sleep(_LOOK_EVERY_S)
    exit_s = time.monotonic() - started
    said = process.communicate()[0]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, job)
    return exit_s, first_s or exit_s, json.loads(said)


def _best(code: str) -> float:
    """Of an interpreter of its own, from its start until the code has run; its end is not counted."""
    code += "\nimport sys; print('there', flush=True); sys.stdin.read()"
    taken = []
    for _ in range(_TIMES):
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            there = any(line.startswith(b"there") for line in process.stdout)
            taken.append(time.monotonic() - started)
        if not there:
            raise subprocess.CalledProcessError(process.wait(), process.args)
    return min(taken)
