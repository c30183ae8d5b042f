"""The job against a loop of processes over the same stages, without Ray: small clips, and long videos."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from emolake.jobs.bench.clips import loop_clip, resized_clip
from emolake.jobs.bench.measurement import COMMAND, Measurement, less_is_better, more_is_better

_SMALL, _SMALL_S = 300, 4.0
_LONG, _LONG_S, _LONG_HEIGHT = 8, 300.0, 720
_PER_COMMIT = 8


def bench_small(clips: list[Path], scratch: Path) -> Iterator[Measurement]:
    small, long = scratch / "small", scratch / "long"
    small.mkdir()
    long.mkdir()
    for k in range(_SMALL):
        clip = clips[k % len(clips)]
        loop_clip(clip, small / f"{k:03d}{clip.suffix}", _SMALL_S)
    for k in range(_LONG):
        clip = scratch / f"{k % len(clips)}.mp4"
        if not clip.exists():
            resized_clip(clips[k % len(clips)], clip, _LONG_HEIGHT)
        loop_clip(clip, long / f"{k}.mp4", _LONG_S)
    told = f"{_SMALL} clips of {_SMALL_S:.0f} s"
    yield from _against_loop(small, told, 1 / 1.2)
    told = f"{_LONG * _LONG_S / 60:.0f} minutes of {_LONG_HEIGHT}p"
    yield from _against_loop(long, told, 1 / 1.1)


def _against_loop(corpus: Path, name: str, least: float) -> Iterator[Measurement]:
    output = corpus.with_name(f"{corpus.name}-output")
    started, before = time.monotonic(), _core_seconds()
    job = [*COMMAND, "annotate", str(corpus), "--output", str(output), "--quiet", "--json"]
    done = subprocess.run(job, check=True, stdout=subprocess.PIPE)
    ours = time.monotonic() - started
    busy = (_core_seconds() - before) / ours
    run = json.loads(done.stdout)
    windows = run["windows"]
    started, before = time.monotonic(), _core_seconds()
    theirs = _plain_loop(corpus, corpus.with_name(f"{corpus.name}-plain"))
    peer = time.monotonic() - started
    loop_busy = (_core_seconds() - before) / peer
    if theirs != windows:
        raise RuntimeError(f"the plain loop made {theirs} windows, the job {windows}")
    yield less_is_better(f"{name}: the job / a loop of processes", ours, peer, "s", least)
    yield more_is_better(
        f"{name}: cores busy, the job / the loop", busy, loop_busy, "cores", 1 / 1.15
    )


def _core_seconds() -> float:
    """What all cores of the machine have spent on anything since it started, proc(5)."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:9]
    ticks = sum(map(int, (user, nice, system, irq, softirq)))
    return ticks / os.sysconf("SC_CLK_TCK")


def _plain_loop(corpus: Path, output: Path) -> int:
    """One process a core, each with all the stages; the number of windows committed."""
    from emolake.pipeline.config import Config
    from emolake.pipeline.corpus.listing import find_videos
    from emolake.pipeline.corpus.planning import make_plan
    from emolake.pipeline.lake.commit import RunStamp, commit_segments
    from emolake.pipeline.lake.layout import Lake
    from emolake.pipeline.lake.lease import Lease
    from emolake.pipeline.lake.recovery import recover
    from emolake.pipeline.lake.schema import LISTED_ROW
    from emolake.pipeline.storage.files import Storage
    from emolake.pipeline.storage.shards import Shards

    lake = Lake.at(str(output), Storage())
    lease = Lease.acquire(lake, "plain", say=print)
    stamp = RunStamp("plain", datetime.now(UTC).strftime("%Y-%m-%d"), "plain")
    videos = Shards.of(LISTED_ROW, find_videos([str(corpus)], Storage()))
    plan = make_plan(videos, recover(lake, lease.fence), Config(), "plain")
    todo = [row for part in plan.todo.parts() for row in part.to_pylist()]
    windows, waiting = 0, list[dict[str, Any]]()
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0)), _begin) as pool:
        for rows in pool.imap_unordered(_through_all, todo):
            waiting += rows
            windows += sum(len(row["annotations"]) for row in rows)
            if len(waiting) >= _PER_COMMIT:
                commit_segments(lake, waiting, stamp, lease.fence)
                waiting = []
        if waiting:
            commit_segments(lake, waiting, stamp, lease.fence)
    lease.release()
    return windows


@dataclass
class _Stages:
    faces: Any
    annotator: Any


_stages: _Stages | None = None


def _begin() -> None:
    """The stages in one process, with one child: what is compared is the way between them."""
    global _stages
    from emolake.actors.annotation_actor import AnnotationActor, AnnotationSettings
    from emolake.actors.face_actor import FaceActor, FaceSettings
    from emolake.jobs.setting import ChosenModel, needs_of
    from emolake.pipeline.config import Config

    config = Config()
    needs = needs_of(tuple(ChosenModel.of(model) for model in config.models), config)
    settings = FaceSettings(config.decode, config.faces, config.windows, config.limits, needs)
    _stages = _Stages(
        FaceActor(settings, plans=True),
        AnnotationActor(AnnotationSettings(config.models, config.annotator, own_process=True)),
    )


def _through_all(video: dict[str, Any]) -> list[dict[str, Any]]:
    from emolake.pipeline.lake.schema import VIDEO_ROW

    assert _stages is not None
    found = _stages.faces(pa.Table.from_pylist([video], VIDEO_ROW))
    rows = _stages.annotator(found).to_pylist(maps_as_pydicts=None)
    return list(rows)
