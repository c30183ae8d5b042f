"""`emolake bench NAME`: runs an entry and says which ratios hold.

An entry is a function from the clips to measurements. What the peers are stands in
docs/benchmarks.md.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.bench.annotate import bench_annotate
from jobs.bench.clips import good_clips
from jobs.bench.faces import bench_faces
from jobs.bench.measurement import Measurement
from jobs.bench.pipeline import bench_pipeline
from jobs.bench.plan import bench_plan
from jobs.bench.scale import bench_scale
from jobs.cli import print_json

_BENCHES: dict[str, Callable[[list[Path], Path, Namespace], Iterator[Measurement]]] = {
    "faces": bench_faces,
    "annotate": bench_annotate,
    "pipeline": bench_pipeline,
    "plan": bench_plan,
    "scale": bench_scale,
}


def bench_command(options: Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        clips = good_clips(options.clips, Path(scratch))
        told = [m.row() for m in _BENCHES[options.name](clips, Path(scratch), options)]
    if options.json:
        print_json(told)
        return 0
    for row in told:
        verdict = "ok" if row["ok"] else "below"
        print(
            f"{row['name']:<52} ours {row['ours']:>9.3f}  peer {row['peer']:>9.3f} {row['unit']:<10}"
            f" ratio {row['ratio']:>6.2f}  least {row['least']:g}  {verdict}"
        )
    return 0
