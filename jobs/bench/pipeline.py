"""The whole job and the command line's start."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from jobs.bench.measurement import Measurement, less_is_better


def bench_pipeline(clips: list[Path], scratch: Path, _options: Namespace) -> Iterator[Measurement]:
    """The whole job and the command line's start."""
    output = scratch / "output"
    command = [sys.executable, "-m", "jobs"]
    spent = dict.fromkeys(("help", "python", "job", "again"), 0.0)
    for name, arguments in {
        "python": [sys.executable, "-c", "pass"],
        "help": [*command, "--help"],
        "job": [*command, "annotate", *map(str, clips), "--output", str(output), "--quiet"],
        "again": [*command, "annotate", *map(str, clips), "--output", str(output), "--quiet"],
    }.items():
        best = math.inf
        for _ in range(1 if name == "job" else 3):
            started = time.monotonic()
            subprocess.run(arguments, check=True, capture_output=True)
            best = min(best, time.monotonic() - started)
        spent[name] = best
    yield less_is_better("emolake --help / bare python", spent["help"], spent["python"], "s", 0.1)
    yield less_is_better(
        "a run with nothing to do / the run before", spent["again"], spent["job"], "s", 2.0
    )
