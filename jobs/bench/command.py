"""`emolake bench NAME`: runs an entry and says which ratios hold.

An entry is a function from the clips to measurements. What the peers are stands in
docs/benchmarks.md.
"""

from __future__ import annotations

import importlib
import tempfile
from argparse import Namespace
from pathlib import Path

from emolake.jobs.cli import print_json

_BENCHES = {
    "faces": ("faces:bench_faces", True),
    "annotate": ("annotate:bench_annotate", False),
    "pipeline": ("pipeline:bench_pipeline", True),
    "plan": ("plan:bench_plan", False),
    "scale": ("scale:bench_scale", True),
}
"""Where an entry stands, and whether it runs on clips. Each imports what it needs and no more: the
annotation stage is measured where neither Ray nor PyAV is."""


def bench_command(options: Namespace) -> int:
    place, on_clips = _BENCHES[options.name]
    module, _, name = place.partition(":")
    entry = getattr(importlib.import_module(f"emolake.jobs.bench.{module}"), name)
    with tempfile.TemporaryDirectory() as scratch:
        clips: list[Path] = []
        if on_clips:
            from emolake.jobs.bench.clips import good_clips

            clips = good_clips(options.clips, Path(scratch))
        told = [m.row() for m in entry(clips, Path(scratch), options)]
    if options.json:
        print_json(told)
        return 0
    for row in told:
        verdict = "ok" if row["ok"] else "below"
        print(
            f"{row['name']:<60} ours {row['ours']:>9.3f}  peer {row['peer']:>9.3f} {row['unit']:<10}"
            f" ratio {row['ratio']:>6.2f}  least {row['least']:g}  {verdict}"
        )
    return 0
