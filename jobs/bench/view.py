"""How long a page of `emolake view` takes over a million windows, beside DuckDB on the plain files."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from emolake.jobs.bench.measurement import Measurement, less_is_better
from emolake.jobs.bench.plan import minute_of
from emolake.pipeline.corpus.listing import Video
from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import label_set
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.storage.files import Storage

_VIDEOS, _WINDOWS, _A_COMMIT = 100_000, 10, 2000
_SAID = (None, "good morning", "and that was all we knew of it then", "no")
_WITHIN_S = 0.5
_ASKED = {
    "all": {},
    "one emotion, sure, of one corpus": {"emotion": "fear", "corpus": "c1", "sure_from": "70"},
    "words said": {"words": "morning"},
    "part of a name, unsure first": {"video": "0777", "sort": "unsure"},
    "the last page": {"sort": "time"},
}


def bench_view(_clips: list[Path], scratch: Path, _options: Namespace) -> Iterator[Measurement]:
    try:
        import duckdb
    except ImportError:
        raise UserError("this benchmark needs duckdb; install emolake[view]") from None
    from emolake.pipeline.presentation.view.index import FACETS, PAGE, Filter, Index, Queue

    lake = Lake.at(str(scratch / "lake"), Storage())
    windows = _archive(lake)
    started = time.monotonic()
    (scratch / "index").mkdir()
    index = Index(lake, scratch / "index", "bench")
    files = lake.path("annotations", "*", "*", "*.parquet")
    rows = f"read_parquet('{files}', hive_partitioning = true)"
    yield less_is_better(
        f"reading {windows:,} windows of {_VIDEOS:,} videos", time.monotonic() - started,
        _best(lambda: duckdb.execute(f"create or replace table x as select * from {rows}")),  # noqa: S608
        "s", 0.0,
    )  # fmt: skip
    for name, asked in _ASKED.items():
        chosen = Filter.of(asked.items())

        def page(chosen: Filter = chosen, name: str = name) -> None:
            index.facets(chosen)
            index.moments(chosen, windows // PAGE if name == "the last page" else 0)

        yield less_is_better(
            f"a page with its counts: {name} / 0.5 s", _best(page), _WITHIN_S, "s", 1.0
        )

    def plain() -> None:
        for facet in (*FACETS[:4], "count(*)"):
            duckdb.execute(f"select {facet}, count(*) from {rows} group by all").fetchall()  # noqa: S608
        order = "confidence desc, uri, start_s"
        duckdb.execute(f"select * from {rows} order by {order} limit {PAGE}").fetchall()  # noqa: S608

    everything = Filter()
    ours = _best(lambda: (index.facets(everything), index.moments(everything, 0)))
    yield less_is_better("a page: all / DuckDB on the plain files", ours, _best(plain), "s", 1.0)
    yield less_is_better(
        "the next of a random queue, its order known / 0.5 s",
        _best(lambda: index.next_in(Queue())), _WITHIN_S, "s", 1.0,
    )  # fmt: skip


def _archive(lake: Lake) -> int:
    """Ten windows a video, in commits as a compaction leaves them; how many windows."""
    lease = Lease.acquire(lake, "bench")
    draw = np.random.default_rng(0)
    labels = label_set("fer2013")
    videos = [Video(f"/archive/{k:06d}.mp4", 1000, "1") for k in range(_VIDEOS)]
    for at in range(0, _VIDEOS, _A_COMMIT):
        rows = [minute_of(video, _WINDOWS) for video in videos[at : at + _A_COMMIT]]
        for row in rows:
            row["corpus"] = f"c{draw.integers(4)}"
            for window in row["annotations"]:
                window |= {
                    "emotion": labels[int(7 * draw.random() ** 3)],
                    "confidence": 1 - 0.8 * draw.random() ** 2,
                    "transcript": _SAID[draw.integers(len(_SAID))],
                }
        stamp = RunStamp("bench", f"2026-01-{1 + at // _A_COMMIT % 28:02d}", "bench")
        commit_segments(lake, rows, stamp, lease.fence)
    lease.release()
    return _VIDEOS * _WINDOWS


def _best(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(3):
        started = time.monotonic()
        work()
        spent.append(time.monotonic() - started)
    return min(spent)
