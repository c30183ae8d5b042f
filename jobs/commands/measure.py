"""`emolake measure`: shares of face-time by emotion, with intervals that hold whatever the model is."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, part_option, storage_option
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.audit import UNITS, Said
from emolake.pipeline.evaluation.labelled import read_table
from emolake.pipeline.evaluation.measuring import (
    PLACE,
    Output,
    Part,
    counted,
    draw_name,
    draw_videos,
    draw_windows,
    draws_of,
    groupable,
    said_of_draw,
)
from emolake.pipeline.lake.labels import Labels
from emolake.pipeline.lake.reading import opened
from emolake.pipeline.storage.files import Storage, parse_options

_UNMEASURED = (
    "no labels of a random draw: the model's answers are counted, with all their errors; "
    "emolake view {output} --queue random asks for some"
)
_AUDIT = (*PLACE, "unit", "drawn_from", "seed", "label")


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option(
        "--labels",
        "FILE",
        "what people said of windows drawn at random: Parquet, CSV or JSONL with uri, label, and segment, "
        "track_id and window, or start_s (and track_id); by default what they said in the view",
    )
    parser.option("--by", "COL,...", "columns of annotations to measure apart, such as corpus,date")
    parser.option("--reading", "MODEL", "whose answers, where several models wrote")
    parser.option(
        "--draw", "N", "draw N at random for people to label, and write them to --audit", type=int
    )
    parser.option(
        "--audit", "FILE", "CSV that --draw writes; filled in, --labels reads it", type=Path
    )
    parser.option(
        "--seed", "N", "of the draw, here or in the view: one seed draws the same again", type=int
    )
    parser.add_argument(
        "--unit", choices=UNITS, default=None,
        help="what is or was drawn: windows, or videos with all of theirs (window, or as --labels says)",
    )  # fmt: skip
    part_option(parser)
    storage_option(parser)
    parser.calls(run, "emolake measure out/ --labels audit.csv --by corpus")


def run(options: Options) -> int:
    given = parse_options(options.storage_options)
    output = Output(options.output, given, options.reading, Part.of(options.part))
    if options.draw is not None or options.audit is not None:
        return _draw(options, output)
    if options.seed is not None and options.labels is not None:
        raise UserError("--seed is of --draw and of the view; what was drawn stands in --labels")
    by = _columns(options.by)
    said = None
    if options.labels is not None:
        table = read_table(options.labels, Storage(given))
        said = Said.of_table(table, f"--labels {options.labels}", options.unit)
        if not said.windows:
            raise UserError(f"--labels {options.labels}: no row has a label yet")
    else:
        said = _said_here(options, output)
    _refuse_videos(output, said.unit if said else options.unit)
    found = counted(output, by, said)
    entries = [
        dict(zip(by, group, strict=True)) | entry
        for group in sorted(found, key=str)
        for entry in found[group].told(said)
    ]
    if said is None:
        print(_UNMEASURED.format(output=options.output), file=sys.stderr)
    return tell(options, entries, *_lines(entries, by, said, options.part))


def _refuse_videos(output: Output, unit: str | None) -> None:
    if output.part is not None and unit == "video":
        raise UserError(
            "--part takes single windows out of all videos; these were drawn as whole videos"
        )


def _said_here(options: Options, output: Output) -> Said | None:
    """By the draw that is named, or by the one that most labels were asked for by."""
    labels = Labels.of(opened(options.output, output.storage_options))
    there = [
        (unit, seed)
        for unit, seed in draws_of(labels)
        if options.unit in (None, unit) and options.seed in (None, seed)
    ]
    if len(there) > 1:
        told = ", ".join(draw_name(unit, seed) for unit, seed in there)
        print(f"labels of several draws: {told}; the first is taken", file=sys.stderr)
    return said_of_draw(output, labels, *there[0]) if there else None


def _columns(asked: str | None) -> tuple[str, ...]:
    names = tuple(asked.split(",")) if asked else ()
    for name in names:
        if name not in groupable():
            raise UserError(f"--by {name}: annotations can be measured by {', '.join(groupable())}")
    return names


def _draw(options: Options, output: Output) -> int:
    n, file = options.draw, options.audit
    if n is None or file is None:
        raise UserError("--draw N and --audit FILE go together: N windows are written to FILE")
    for option in ("labels", "by"):
        if getattr(options, option) is not None:
            raise UserError(f"--{option} measures, --draw draws: one after the other")
    if n < 1:
        raise UserError(f"--draw {n} must be at least 1")
    if file.exists():
        raise UserError(f"--audit {file} is there already; name a new file")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--audit {file}: {file.parent} is no folder of this machine")
    unit, seed = options.unit or "window", options.seed or 0
    _refuse_videos(output, unit)
    drawn = (draw_windows if unit == "window" else draw_videos)(output, n, seed)
    if not drawn.rows:
        raise UserError(f"{options.output} has no window of a face; annotate some first")
    drawn_as = {"unit": unit, "drawn_from": drawn.drawn_from, "seed": seed}
    with file.open("x", newline="") as out:
        writer = csv.DictWriter(out, _AUDIT)
        writer.writeheader()
        writer.writerows(row | drawn_as | {"label": ""} for row in drawn.rows)
    if n > drawn.drawn_from:
        print(f"there are {drawn.drawn_from} {unit}s in all", file=sys.stderr)
    told = {"audit": str(file), "windows": len(drawn.rows)} | drawn_as
    return tell(
        options, told,
        f"{file}: {len(drawn.rows)} windows to label, in the order in which to do it; then "
        f"emolake measure {options.output} --labels {file}"
        + (f" --part {options.part}" if options.part else ""),
    )  # fmt: skip


def _lines(
    entries: Sequence[dict[str, Any]], by: tuple[str, ...], said: Said | None, part: str | None
) -> Iterator[str]:
    if said is not None and (said.blank or said.missed):
        print(
            f"of the labels {said.blank} are not filled in, and {said.missed} are of windows that the output "
            "has not, or has at other times" + (", or in another part" if part else ""),
            file=sys.stderr,
        )
    head = (*by, "emotion", "counted", "measured", "95 %", "audit alone", "labels", "worth")
    table = [head, *(_cells(entry, by) for entry in entries)]
    widths = [max(len(row[k]) for row in table) for k in range(len(head))]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(entry: dict[str, Any], by: tuple[str, ...]) -> tuple[str, ...]:
    def percent(name: str) -> str:
        return "-" if entry.get(name) is None else f"{100 * entry[name]:.1f} %"

    between = (
        "-" if entry["low"] is None else f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"
    )
    return (
        *(str(entry[name]) for name in by),
        entry["emotion"], percent("naive"), percent("estimate"), between, percent("audit"),
        str(entry["n_labels"]), str(entry.get("worth") or "-"),
    )  # fmt: skip
