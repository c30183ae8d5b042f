"""`emolake bench NAME`: runs an entry and says which ratios hold.

An entry is a function from the clips to measurements. What the peers are stands in
docs/benchmarks.md.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser
from emolake.pipeline.errors import UserError

_BENCHES = {
    "faces": ("faces:bench_faces", True),
    "codecs": ("codecs:bench_codecs", True),
    "scenes": ("scenes:bench_scenes", False),
    "crowd": ("crowd:bench_crowd", False),
    "start": ("start:bench_start", True),
    "annotate": ("annotate:bench_annotate", False),
    "pipeline": ("pipeline:bench_pipeline", True),
    "plan": ("plan:bench_plan", False),
    "scale": ("scale:bench_scale", True),
    "view": ("view:bench_view", False),
}
"""Where an entry stands, and whether it runs on clips. Each imports what it needs and no more: the
annotation stage is measured where neither Ray nor PyAV is."""


def declare(parser: Parser) -> None:
    parser.add_argument("name", choices=tuple(_BENCHES), help="what to measure")
    parser.option("--clips", "DIR", "folder of videos (default: the demo's)", type=Path)
    parser.option(
        "--truth",
        "FILE",
        "faces, scenes: spans and boxes of the people in the clips (default: truth.json beside them)",
        type=Path,
    )
    parser.option(
        "--sheet", "FILE.png", "faces, scenes: draw a contact sheet with the boxes found", type=Path
    )
    parser.option(
        "--faces",
        "DIR",
        "scenes, crowd: pictures and videos whose heads are used (default: scikit-image's one portrait)",
        type=Path,
    )
    parser.option(
        "--detector",
        "NAME[=WEIGHTS][,KEY=VALUE...]",
        "scenes: a detector and options of `faces`; repeatable (default: mtcnn, and mtcnn,min_face=16)",
        action="append",
    )
    parser.add_argument(
        "--part", choices=("stills", "brief", "crowds", "split", "cuts", "poses"), action="append",
        help="scenes: this part alone; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--scenes", type=int, default=12, metavar="N", help="scenes: how many of each kind"
    )
    parser.add_argument(
        "--shape", choices=("tiny", "100m", "7b"),
        help="annotate: the embedded model, or random weights of that size (default: tiny, 100m)",
    )  # fmt: skip
    parser.add_argument(
        "--paper", action="store_true",
        help="annotate --shape 7b: what a GPU that is not there would hold, compute and move",
    )  # fmt: skip
    parser.flag("--small", "pipeline: small and long videos, against a plain loop of processes")
    parser.option("--profile", "FILE", "annotate: append the costliest operators", type=Path)
    parser.calls(run, "emolake bench faces --clips clips/ --json")


def run(options: Options) -> int:
    if options.paper:
        if (options.name, options.shape) != ("annotate", "7b"):
            raise UserError("--paper goes with annotate --shape 7b")
        from emolake.jobs.bench.paper import paper, table

        rows = list(paper())
        return tell(options, rows, *table(rows))
    if options.scenes < 1:
        raise UserError(f"--scenes {options.scenes}: a bench needs one of each kind at least")
    place, on_clips = _BENCHES[options.name]
    name_of_module, _, name = place.partition(":")
    module = importlib.import_module(f"emolake.jobs.bench.{name_of_module}")
    entry = getattr(module, name)
    with tempfile.TemporaryDirectory() as scratch:
        clips: list[Path] = []
        if on_clips:
            from emolake.jobs.bench.clips import good_clips

            clips = good_clips(options.clips, Path(scratch))
        told = [m.row() for m in entry(clips, Path(scratch), options)]
    if hasattr(module, "table"):
        return tell(options, told, *module.table(told))
    lines = (
        f"{row['name']:<60} ours {row['ours']:>9.3f}  peer {row['peer']:>9.3f} {row['unit']:<10}"
        f" ratio {row['ratio']:>6.2f}  least {row['least']:g}  {'ok' if row['ok'] else 'below'}"
        for row in told
    )
    return tell(options, told, *lines)
