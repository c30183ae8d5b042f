"""Planning over a large ledger, and what compaction saves."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from emolake.jobs.bench.measurement import Measurement, less_is_better
from emolake.pipeline.config import Config
from emolake.pipeline.corpus.listing import Video
from emolake.pipeline.corpus.planning import make_plan
from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.lake.ledger import ledger_shards
from emolake.pipeline.lake.schema import ANNOTATIONS, LISTED_ROW, sort_keys
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.shards import Shards

_COMMITS, _VIDEOS_A_COMMIT, _WINDOWS = 1000, 4, 8
_LARGE = 256 << 20
_LARGE_FILES, _VIDEOS_A_LARGE_FILE, _WINDOWS_OF_A_LARGE = 4, 2500, 100


def bench_plan(_clips: list[Path], scratch: Path, _options: Namespace) -> Iterator[Measurement]:
    """A lake of a thousand small commits, planned and read before and after compaction."""
    lake = Lake.at(str(scratch / "lake"), Storage())
    stamp = RunStamp("bench", "2026-01-01", "bench")
    videos = [Video(f"/archive/{k:06d}.mp4", 1000, "1") for k in range(_COMMITS * _VIDEOS_A_COMMIT)]
    lease = Lease.acquire(lake, "bench")
    for at in range(0, len(videos), _VIDEOS_A_COMMIT):
        rows = [minute_of(video) for video in videos[at : at + _VIDEOS_A_COMMIT]]
        commit_segments(lake, rows, stamp, lease.fence)

    listed = Shards(LISTED_ROW)
    listed.add(pa.Table.from_pylist([video.row() for video in videos], LISTED_ROW))

    def plan() -> int:
        return make_plan(listed, ledger_shards(lake), Config(), "bench").todo.num_rows

    def count() -> int:
        folder = lake.path("annotations")
        table = ds.dataset(folder, partitioning="hive").to_table(columns=["emotion"])
        return table.group_by("emotion").aggregate([("emotion", "count")]).num_rows

    before = {work.__name__: _best(work) for work in (plan, count)}
    done = compact(lake, lease.fence, _LARGE)
    lease.release()
    after = {work.__name__: _best(work) for work in (plan, count)}
    yield less_is_better(
        "planning 4,000 videos, compacted / 1,000 commits", after["plan"], before["plan"], "s", 2.0
    )
    yield less_is_better(
        "counting emotions, compacted / 1,000 commits", after["count"], before["count"], "s", 2.0
    )
    yield less_is_better(
        "files, compacted / before", done.files_after, done.files_before, "files", 100.0
    )
    yield _lookup(scratch)


def _lookup(scratch: Path) -> Measurement:
    """One video's rows out of a million in DuckDB: files as the lake writes them, and the same rows in
    one row group a file."""
    try:
        import duckdb
    except ImportError:
        raise UserError("this benchmark needs duckdb; install emolake[view]") from None

    lake = Lake.at(str(scratch / "large"), Storage())
    plain = scratch / "plain"
    plain.mkdir()
    for number in range(_LARGE_FILES):
        rows = [
            row
            for k in range(_VIDEOS_A_LARGE_FILE)
            for row in _annotation_rows(number * _VIDEOS_A_LARGE_FILE + k)
        ]
        order = [(key, "ascending") for key in sort_keys(ANNOTATIONS)]
        table = pa.Table.from_pylist(rows, ANNOTATIONS).sort_by(order)
        lake.write_table(lake.data_path("annotations", "bench", "2026-01-01", f"{number}"), table)
        pq.write_table(table, plain / f"{number}.parquet", compression="zstd")
    wanted = Video("/archive/000077.mp4", 1000, "1").video_id

    def rows_of(files: str) -> int:
        query = f"SELECT * FROM read_parquet('{files}') WHERE video_id = ?"  # noqa: S608
        return len(duckdb.execute(query, [wanted]).fetchall())

    return less_is_better(
        "one video's rows of 1,000,000 / in one row group a file",
        _best(lambda: rows_of(lake.path("annotations", "*", "*", "*.parquet"))),
        _best(lambda: rows_of(f"{plain}/*.parquet")),
        "s",
        1.5,
    )


def _annotation_rows(number: int) -> list[dict[str, Any]]:
    video = Video(f"/archive/{number:06d}.mp4", 1000, "1")
    own = {
        "video_id": video.video_id, "uri": video.uri, "segment": 0, "config_hash": "c",
        "run_id": "r", "schema_version": 1,
    }  # fmt: skip
    draw = np.random.default_rng(number).random
    return [
        own
        | row
        | {
            "scores": list(zip("abcdefg", draw(7).tolist(), strict=True)),
            "confidence": float(draw()),
            "bbox": dict(zip(("x1", "y1", "x2", "y2"), draw(4).tolist(), strict=True)),
        }
        for row in minute_of(video, _WINDOWS_OF_A_LARGE)["annotations"]
    ]


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return min(times)


def minute_of(video: Video, windows: int = _WINDOWS) -> dict[str, Any]:
    """A row of schema.ANNOTATED_ROW as an annotated minute leaves it."""
    box = {"x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.6}
    annotations = [
        {
            "track_id": 0, "window": w, "start_s": 2.0 * w, "end_s": 2.0 * w + 2, "n_frames": 8,
            "n_interpolated": 0, "bbox": box, "emotion": "neutral", "confidence": 0.7,
            "scores": [("neutral", 0.7), ("sadness", 0.3)], "model": "m", "model_revision": "r",
        }
        for w in range(windows)
    ]  # fmt: skip
    track = {
        "track_id": 0, "start_s": 0.0, "end_s": 2.0 * windows, "n_detections": 64,
        "n_interpolated": 0, "mean_score": 0.9, "mean_box": box, "person_id": None, "path": [],
        "thumbnail": None,
    }  # fmt: skip
    return {
        "video_id": video.video_id, "uri": video.uri, "size": video.size, "corpus": "bench",
        "attempt": 1, "segment": 0, "n_segments": 1, "reason": None, "detail": None,
        "duration_s": 60.0, "fps": 25.0, "width": 640, "height": 360, "codec": "h264",
        "failed": False, "n_dropped_tracks": 0, "tracks": [track], "annotations": annotations,
    }  # fmt: skip
