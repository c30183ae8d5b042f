"""Scale by measurement: planning over a million videos, listing, nodes, the object store, and how
well a sample foretells a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emolake.jobs.bench.clips import loop_clip, repeated
from emolake.jobs.bench.measurement import (
    COMMAND,
    Measurement,
    less_is_better,
    more_is_better,
    peak_mb,
)
from emolake.jobs.bench.plan import minute_of
from emolake.jobs.bench.s3 import local_s3
from emolake.jobs.bench.store import watched_ray
from emolake.jobs.setting import ChosenModel
from emolake.pipeline.config import Config
from emolake.pipeline.corpus.listing import Video, find_videos
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.lake.order import new_commit_id
from emolake.pipeline.lake.schema import VIDEOS
from emolake.pipeline.models.catalog import DEFAULT_MODEL
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.traffic import ours

_FEW, _MANY = 100_000, 1_000_000
_DONE = 0.9
_A_COMMIT = 8  # videos
_SECONDS = 4.0  # a video
_OBJECTS = 100_000
_COMMITS = 2000
_ROUND_TRIP_S = 0.02  # of a request to an object store of the same region
_SLOW_SECONDS = 150.0
_READER = """
import sys
from emolake.pipeline.lake.reading import stream
assert sum(batch.num_rows for batch in stream(sys.argv[1]))
"""


def bench_scale(clips: list[Path], scratch: Path, _options: Namespace) -> Iterator[Measurement]:
    yield from _planning(clips[0], scratch)
    yield from _compacting()
    yield _listing()
    yield from _nodes(clips, scratch)
    yield _object_store(clips[0], scratch)
    yield _foretold(clips, scratch)


@dataclass(frozen=True)
class _Spent:
    seconds: float
    peak_mb: float


def _planning(clip: Path, scratch: Path) -> Iterator[Measurement]:
    archives = {n: _archive(clip, scratch / f"archive-{n}", n) for n in (_FEW, _MANY)}

    def compared(name: str, spend: Callable[[str, str], _Spent]) -> Iterator[Measurement]:
        spent = {count: spend(*archive) for count, archive in archives.items()}
        few, many = spent[_FEW], spent[_MANY]
        yield less_is_better(
            f"{name}: peak memory at 1,000,000 videos / at 100,000",
            many.peak_mb, few.peak_mb, "MB", 0.67,
        )  # fmt: skip
        yield more_is_better(
            f"{name}: videos a second there",
            _MANY / many.seconds, _FEW / few.seconds, "videos/s", 0.5,
        )  # fmt: skip
        seconds[name] = many.seconds

    def commanded(name: str, *options: str) -> Iterator[Measurement]:
        return compared(
            name,
            lambda _, output: _measured(
                *(*COMMAND, name, output, "--json"), *(option.format(output) for option in options)
            ),
        )

    seconds: dict[str, float] = {}
    yield from compared("plan", _plan)
    yield from compared("a run's first segment", _until_first_commit)
    yield less_is_better(
        "first segment of the 1,000,000 / its plan alone",
        seconds["a run's first segment"], seconds["plan"], "s", 0.77,
    )  # fmt: skip
    yield from commanded("status")
    yield from commanded("report", "--html", str(scratch / "page.html"))
    yield from compared(
        "a reader", lambda _, output: _measured(sys.executable, "-c", _READER, output)
    )
    yield from commanded("publish", "--catalog", "sqlite:///{}.db")
    # It comes last: it changes what the others read.
    yield from commanded("compact")
    for count in archives:
        rmtree(scratch / f"archive-{count}")


def _plan(manifest: str, output: str) -> _Spent:
    return _measured(*COMMAND, "plan", manifest, "--output", output, "--json")


def _archive(clip: Path, folder: Path, count: int) -> tuple[str, str]:
    """A manifest of `count` videos, links to one of four seconds, and an output in which nine tenths are
    done, eight a commit."""
    folder.mkdir()
    output = str(folder / "lake")
    uris = [str(folder / f"{k:07d}{clip.suffix}") for k in range(count)]
    done = int(count * _DONE)
    film = folder / f"film{clip.suffix}"
    loop_clip(clip, film, _SECONDS)
    size = film.stat().st_size
    for uri in uris[done:]:
        Path(uri).symlink_to(film)
    commits = [uris[k : k + _A_COMMIT] for k in range(0, done, _A_COMMIT)]
    writing = partial(
        _committed, output=output, size=size, of_one=_one_video(folder / "one"),
        config_hash=Config().results_hash(ChosenModel.of(DEFAULT_MODEL).revision, {}),
    )  # fmt: skip
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(writing, commits, chunksize=256):
            pass
    manifest = folder / "manifest.parquet"
    pq.write_table(pa.table({"uri": uris, "size": [size] * count, "etag": ["1"] * count}), manifest)
    return str(manifest), output


def _committed(
    uris: list[str], output: str, size: int, of_one: dict[str, pa.Table], config_hash: str
) -> None:
    lake, commit = Lake.at(output, Storage()), new_commit_id(1)
    rows = [
        {
            "video_id": Video(uri, size, "1").video_id, "uri": uri, "size": size, "segment": 0,
            "n_segments": 1, "state": "annotated", "duration_s": _SECONDS, "n_tracks": 1,
            "n_windows": 2, "commit_id": commit, "run_id": "bench", "attempt": 1, "lease": 1,
            "config_hash": config_hash, "schema_version": 1, "finished_at": 1_700_000_000_000_000,
        }
        for uri in uris
    ]  # fmt: skip
    tables = {name: _repeated_for(rows, one) for name, one in of_one.items()}
    for name, table in (tables | {LEDGER: pa.Table.from_pylist(rows, VIDEOS)}).items():
        lake.write_table(lake.data_path(name, "default", "2026-01-01", commit), table)


def _one_video(folder: Path) -> dict[str, pa.Table]:
    """What a video of one track and two windows brings to each data table."""
    lake = Lake.at(str(folder), Storage())
    lease = Lease.acquire(lake, "bench")
    minute = minute_of(Video("/one.mp4", 1, "1"))
    two = minute | {"annotations": minute["annotations"][:2], "tracks": minute["tracks"][:1]}
    commit_segments(lake, [two], RunStamp("bench", "2026-01-01", "bench"), lease.fence)
    lease.release()
    return {name: lake.read_table(lake.files(name)[0]) for name in DATA_TABLES}


def _repeated_for(videos: list[dict[str, Any]], one: pa.Table) -> pa.Table:
    table = one.take(pa.array(list(range(one.num_rows)) * len(videos)))
    for name in ("video_id", "uri"):
        told = pa.array([video[name] for video in videos for _ in range(one.num_rows)])
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), told)
    return table


def _compacting() -> Iterator[Measurement]:
    """Many commits in an object store become few: what is asked of the store, and how long it takes."""
    with local_s3() as server:
        server.fill("archive", ())
        lake = Lake.at("s3://archive/lake", Storage(server.options))
        lease = Lease.acquire(lake, "bench")
        stamp = RunStamp("bench", "2026-01-01", "bench")
        for k in range(_COMMITS):
            video = Video(f"/archive/{k:06d}.mp4", 1000, "1")
            commit_segments(lake, [minute_of(video)], stamp, lease.fence)
        before, started = ours(), time.monotonic()
        compact(lake, lease.fence, 256 << 20)
        seconds = time.monotonic() - started
        lease.release()
        requests = ours().since(before)["requests"] / _COMMITS
    yield less_is_better(
        "compaction, requests a commit / three files", requests, 3, "requests", 0.98
    )
    yield more_is_better(
        "compaction, commits a second / one request after the other",
        _COMMITS / seconds, 1 / (3 * _ROUND_TRIP_S), "commits/s", 1.0,
    )  # fmt: skip


def _measured(*command: str) -> _Spent:
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}")
    return _Spent(time.monotonic() - started, usage.ru_maxrss / 1024)


def _until_first_commit(manifest: str, output: str) -> _Spent:
    """A run until its first segment is in the lake; then it is ended."""
    (before,) = (Path(output) / LEDGER).glob("corpus=*/date=*")
    started = time.monotonic()
    process = subprocess.Popen([*COMMAND, "annotate", manifest, "--output", output, "--quiet"])
    try:
        # Today's folder alone is looked into: the other's files are too many to be counted beside the run.
        while not any(
            any(day.glob("*.parquet")) for day in before.parent.iterdir() if day != before
        ):
            if process.poll() is not None:
                raise RuntimeError(f"annotate ended with {process.returncode}")
            time.sleep(0.5)
        return _Spent(time.monotonic() - started, peak_mb(process.pid))
    finally:
        process.terminate()
        process.wait()


def _listing() -> Measurement:
    """Listing objects of one prefix, against one HEAD request for each of them."""
    with local_s3() as server:
        server.fill("archive", (f"videos/{k % 100:02d}/{k:06d}.mp4" for k in range(_OBJECTS)))
        storage = Storage(server.options)
        started = time.monotonic()
        found = sum(t.num_rows for t in find_videos(["s3://archive/videos/"], storage))
        listed = time.monotonic() - started
        if found != _OBJECTS:
            raise RuntimeError(f"{found} of {_OBJECTS} objects were listed")
        fs, _ = storage.locate("s3://archive/")
        fs.invalidate_cache()
        started = time.monotonic()
        for k in range(200):
            fs.info(f"archive/videos/{k % 100:02d}/{k:06d}.mp4", refresh=True)
        asked = (time.monotonic() - started) / 200
    return more_is_better(
        "listing 100,000 objects of S3 / asking for each", found / listed, 1 / asked, "objects/s", 5
    )


def _nodes(clips: list[Path], scratch: Path) -> Iterator[Measurement]:
    """One and two nodes, each a Ray node whose processes may run on one core alone."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    corpus = repeated(clips, scratch / "corpus", 24)
    rates = {}
    for count in (1, 2):
        with _cluster(cores[:count]) as address:
            run = _annotate(corpus, scratch / f"nodes-{count}", {"RAY_ADDRESS": address}, count)
        # Ray starts its actors one after another on a small machine: not what scales.
        rates[count] = run["video_seconds"] / (run["wall_seconds"] - run["start_seconds"])
    yield more_is_better("two nodes / one", rates[2], rates[1], "video-s/s", 1.5)


@contextmanager
def _cluster(cores: list[int]) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    everywhere = os.sched_getaffinity(0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for core in cores:
            os.sched_setaffinity(0, {core})  # what it starts inherits it
            cluster.add_node(num_cpus=3, object_store_memory=200 << 20)
        os.sched_setaffinity(0, everywhere)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        os.sched_setaffinity(0, everywhere)
        cluster.shutdown()


def _annotate(
    corpus: Path, output: Path, env: dict[str, str], pool: int | None = None
) -> dict[str, Any]:
    arguments = [*COMMAND, "annotate", str(corpus), "--output", str(output), "--quiet", "--json"]
    if pool is not None:
        for stage in ("face_actors", "annotation_actors"):
            arguments += ["--set", f"resources.{stage}={pool}"]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, env=os.environ | env)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _object_store(clip: Path, scratch: Path) -> Measurement:
    """A two-hour video before an annotation stage that can hardly keep up: the store stays bounded."""
    limit_mb = 150
    film = scratch / "film" / f"two-hours{clip.suffix}"
    film.parent.mkdir()
    loop_clip(clip, film, 7200.0)
    with watched_ray(4, limit_mb) as seen:
        process = subprocess.Popen(
            [
                *(*COMMAND, "annotate", str(film), "--output", str(scratch / "film-lake")),
                *("--quiet", "--set", "annotator.micro_batch=1"),
                *("--set", "resources.face_actors=2"),
                *("--set", "windows.window_seconds=0.25", "--set", "decode.segment_seconds=20"),
            ],
            env=seen.env,
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SLOW_SECONDS)
        process.terminate()
        process.wait()
    return less_is_better("object store, peak / its size", seen.stored_mb, limit_mb, "MB", 1.0)


def _foretold(clips: list[Path], scratch: Path) -> Measurement:
    """The wall time that a run over a sample foretells for eight times as much, and what it took."""
    sample = repeated(clips, scratch / "sample", 4)
    archive = repeated(clips, scratch / "whole", 32)
    _annotate(sample, scratch / "sample-lake", {})
    asked = [
        *(*COMMAND, "plan", str(archive), "--output", str(scratch / "whole-lake"), "--json"),
        *("--estimate", str(scratch / "sample-lake")),
    ]
    told = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)
    hours = told["estimate"]["wall_hours"]
    took = _annotate(archive, scratch / "whole-lake", {})["wall_seconds"]
    close = min(hours * 3600, took) / max(hours * 3600, took)
    return Measurement("hours foretold / taken", hours * 3600, took, close, "s", 0.75)
