"""`emolake status`: the ledger in one table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from emolake.jobs.cli import print_json
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.ledger import ledger_parts, newest_versions, video_states
from emolake.pipeline.lake.reading import steady_ledger
from emolake.pipeline.lake.runs import read_runs
from emolake.pipeline.storage.files import Storage, parse_options

_OF_A_RUN = (
    *("run_id", "finished_at", "model", "videos", "segments", "windows"),
    *("video_seconds", "wall_seconds", "stages", "cost"),
)

_PIPE_WIDTH = 200
"""Columns where nobody looks at a terminal: nothing is folded or cut in a log."""


def declare(parser: Parser) -> None:
    output_argument(parser)
    storage_option(parser)
    parser.calls(run, "emolake status out/")


def run(options: Options) -> int:
    lake = Lake.at(options.output, Storage(parse_options(options.storage_options)))
    try:
        states, failures, sums = Counter[str](), Counter[str](), Counter[str]()
        for ledger in ledger_parts(steady_ledger(lake)):
            rows = newest_versions(ledger.live)
            for video in video_states(rows).values():
                states[video.state] += 1
                if video.state == "failed":
                    failures[str(video.reason)] += 1
            sums["segments"] += rows.num_rows
            for name in ("n_tracks", "n_windows"):
                sums[name] += pc.sum(rows[name]).as_py() or 0
        runs = [{name: run.get(name) for name in _OF_A_RUN} for run in reversed(read_runs(lake))]
    except OSError as error:
        raise UserError(f"{lake.uri} cannot be read: {in_a_line(error)}") from None
    if not sums["segments"] and not runs:
        raise UserError(f"{lake.uri} holds no run; name the --output of an annotate")
    result = {
        "output": lake.uri,
        "videos": {
            "total": states.total(),
            **{name: states[name] for name in ("annotated", "no_face", "failed")},
        },
        "segments": sums["segments"],
        "tracks": sums["n_tracks"],
        "windows": sums["n_windows"],
        "failures": dict(failures.most_common()),
        "runs": runs,
    }
    if options.json:
        print_json(result)
    else:
        _show(result)
    return 0


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    videos = result["videos"]
    console.print(
        f"{result['output']}: {videos['total']} videos, {result['segments']} segments, "
        f"{result['tracks']} face tracks, {result['windows']} windows",
        soft_wrap=True,
    )
    table = Table("state", "videos", box=None)
    for state in ("annotated", "no_face", "failed"):
        table.add_row(state, str(videos[state]))
    console.print(table)
    if result["failures"]:
        table = Table("failed because", "videos", box=None)
        for reason, count in result["failures"].items():
            table.add_row(str(reason), str(count))
        console.print(table)
    table = Table(
        "run", "finished", "videos", "skipped", "windows", "seconds", "video-s/s", "busy", box=None
    )
    for run in result["runs"]:
        table.add_row(
            run["run_id"],
            str(run["finished_at"]),
            str(run["videos"]["total"]),
            str(run["videos"]["skipped"]),
            str(run["windows"]),
            f"{run['wall_seconds']:.1f}",
            f"{run['video_seconds'] / max(run['wall_seconds'], 1e-9):.1f}",
            _busy(run["stages"]),
        )
    console.print(table)


def _busy(stages: dict[str, dict[str, float]]) -> str:
    """How busy the stages with a pool were, where the run's record tells."""
    told = [
        f"{stage} {100 * of['busy_fraction']:.0f} %"
        for stage, of in stages.items()
        if of.get("busy_fraction") and stage != "write"
    ]
    return ", ".join(told)
