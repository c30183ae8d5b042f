"""`emolake measure`: shares of face-time by emotion, with intervals that hold whatever the model is."""

from __future__ import annotations

import csv
import heapq
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.audit import KEY, UNITS, Said
from emolake.pipeline.evaluation.labelled import read_table
from emolake.pipeline.evaluation.shares import Audit, lot, share
from emolake.pipeline.lake.reading import stream, table_schema
from emolake.pipeline.lake.schema import VIDEO_ITSELF
from emolake.pipeline.storage.files import Storage, parse_options

_READ = ("uri", *KEY, "start_s", "end_s", "emotion", "scores", "model")
_AUDIT = ("uri", "start_s", "end_s", *KEY, "unit", "label")
_SHORTEST_S = 1e-3  # of a window of one frame, which must count

Group = tuple[Any, ...]


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option(
        "--labels",
        "FILE",
        "what people said of windows drawn at random: Parquet, CSV or JSONL with uri, label, and segment, "
        "track_id and window, or start_s (and track_id)",
    )
    parser.option("--by", "COL,...", "columns of annotations to measure apart, such as corpus,date")
    parser.option("--reading", "MODEL", "whose answers, where several models wrote")
    parser.option(
        "--draw", "N", "draw N at random for people to label, and write them to --audit", type=int
    )
    parser.option(
        "--audit", "FILE", "CSV that --draw writes; filled in, it is what --labels reads", type=Path
    )
    parser.option("--seed", "N", "of --draw: one seed draws the same again, and more goes on from there",
                  type=int, default=0)  # fmt: skip
    parser.add_argument(
        "--unit", choices=UNITS, default=None,
        help="what is or was drawn: windows, or videos with all of theirs (window, or as --labels says)",
    )  # fmt: skip
    storage_option(parser)
    parser.calls(run, "emolake measure out/ --labels audit.csv --by corpus")


def run(options: Options) -> int:
    if (options.draw is None) != (options.audit is None):
        raise UserError("--draw N and --audit FILE go together: N windows are written to FILE")
    if options.draw is not None:
        return _draw(options)
    by = _columns(options.by)
    said = _said(options) if options.labels is not None else None
    counted = _counted(options, by, said)
    entries = [
        entry
        for group in sorted(counted, key=str)
        for entry in counted[group].told(by, group, said)
    ]
    return tell(options, entries, *_lines(entries, by, said))


def _said(options: Options) -> Said:
    table = read_table(options.labels, Storage(parse_options(options.storage_options)))
    return Said.of_table(table, f"--labels {options.labels}", options.unit)


def _columns(asked: str | None) -> tuple[str, ...]:
    names = tuple(asked.split(",")) if asked else ()
    schema = table_schema("annotations")
    plain = [
        f.name
        for f in schema
        if not pa.types.is_nested(f.type) and f.name not in ("emotion", "confidence")
    ]
    for name in names:
        if name not in plain:
            raise UserError(f"--by {name}: annotations can be measured by {', '.join(plain)}")
    return names


@dataclass
class _Counts:
    """Of one group. won, guessed: seconds of each emotion, by winning labels and by probabilities."""

    windows: int = 0
    seconds: float = 0.0
    won: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    guessed: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    videos: set[str] = field(default_factory=set)
    labelled: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)

    def told(
        self, by: tuple[str, ...], group: Group, said: Said | None
    ) -> Iterator[dict[str, Any]]:
        seen = {label for _, labels in self.labelled for label in labels}
        for emotion in sorted(self.guessed.keys() | self.won.keys() | seen):
            entry = dict(zip(by, group, strict=True)) | {
                "emotion": emotion,
                "naive": self.won[emotion] / self.seconds,
                "estimate": None, "low": None, "high": None,
                "n_windows": self.windows,
                "n_labels": len(self.labelled),
            }  # fmt: skip
            yield entry | (self._measured(emotion, said) if said is not None else {})

    def _measured(self, emotion: str, said: Said) -> dict[str, Any]:
        if not self.labelled:
            return {}
        rows = [row for row, _ in self.labelled]
        units = [row["uri"] if said.unit == "video" else k for k, row in enumerate(rows)]
        seconds = np.array([_seconds(row) for row in rows])
        truth = np.array([labels.count(emotion) / len(labels) for _, labels in self.labelled])
        audit = Audit(
            seconds,
            truth,
            np.array([dict(row["scores"]).get(emotion, 0.0) for row in rows]),
            np.unique(np.array(units), return_inverse=True)[1],
        )
        there = len(self.videos) if said.unit == "video" else self.windows
        guessed = self.guessed[emotion] / self.seconds
        both, alone = share(audit, guessed, there), share(audit, guessed, there, listen=False)
        if both is None or alone is None:
            return {}
        won = seconds * np.array([row["emotion"] == emotion for row in rows])
        right = float(won @ truth)
        return {
            "estimate": both.estimate, "low": both.low, "high": both.high,
            "audit": alone.estimate, "audit_low": alone.low, "audit_high": alone.high,
            # as many labels would have told as much without the model
            "worth": round(len(rows) * (alone.error / both.error) ** 2) if both.error else len(rows),
            "recall": right / float(seconds @ truth) if truth.any() else None,
            "precision": right / float(won.sum()) if won.any() else None,
        }  # fmt: skip


def _seconds(row: dict[str, Any]) -> float:
    return max(row["end_s"] - row["start_s"], _SHORTEST_S)


def _counted(options: Options, by: tuple[str, ...], said: Said | None) -> dict[Group, _Counts]:
    counted: dict[Group, _Counts] = defaultdict(_Counts)
    for table in _windows(options, by):
        seconds = np.maximum(pc.subtract(table["end_s"], table["start_s"]).to_numpy(), _SHORTEST_S)
        groups = (
            list(zip(*(table[name].to_pylist() for name in by), strict=True))
            if by
            else [()] * len(seconds)
        )
        numbers = {group: k for k, group in enumerate(dict.fromkeys(groups))}
        of_row = np.array([numbers[group] for group in groups])
        uris = table["uri"].to_pylist()
        for group, k in numbers.items():
            counts = counted[group]
            mine = np.flatnonzero(of_row == k)
            counts.windows += len(mine)
            counts.seconds += float(seconds[mine].sum())
            counts.videos.update(uris[at] for at in mine)
        scores = table["scores"].combine_chunks()
        names, values = scores.keys.to_pylist(), scores.items.to_numpy(zero_copy_only=False)
        lengths = np.diff(scores.offsets.to_numpy())
        at = np.repeat(np.arange(len(seconds)), lengths)
        for label, value, row in zip(names, seconds[at] * values, at, strict=True):
            counted[groups[row]].guessed[label] += float(value)
        for label, value, group in zip(table["emotion"].to_pylist(), seconds, groups, strict=True):
            counted[group].won[label] += float(value)
        if said is not None:
            _gather(table, groups, said, counted)
    if not counted:
        raise UserError(f"{options.output} has no window of a face; annotate some first")
    return counted


def _gather(
    table: pa.Table, groups: Sequence[Group], said: Said, counted: dict[Group, _Counts]
) -> None:
    """The rows that people labelled."""
    wanted = pa.array(list(said.windows), pa.string())
    name = pc.replace_substring_regex(table["uri"], r"^.*/", "")
    maybe = pc.or_(pc.is_in(table["uri"], wanted), pc.is_in(name, wanted))
    places = np.flatnonzero(maybe.to_numpy(zero_copy_only=False)).tolist()
    for place, row in zip(
        places, table.take(pa.array(places, pa.int64())).to_pylist(), strict=True
    ):
        if labels := said.of(row):
            counted[groups[place]].labelled.append((row, labels))


def _windows(options: Options, by: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Windows of faces, of one model. UserError where several wrote and none was named."""
    names: set[str] = set()
    columns = list(dict.fromkeys([*_READ, *by]))
    for batch in stream(
        options.output, "annotations", parse_options(options.storage_options), columns
    ):
        table = pa.Table.from_batches([batch])
        table = table.filter(pc.not_equal(table["track_id"], VIDEO_ITSELF))
        names.update(table["model"].unique().to_pylist())
        if options.reading is not None:
            table = table.filter(pc.equal(table["model"], options.reading))
        elif len(names) > 1:
            raise UserError(
                f"the output has rows of {', '.join(sorted(names))}; say whose count: --reading NAME"
            )
        if table.num_rows:
            yield table
    if options.reading is not None and options.reading not in names:
        raise UserError(
            f"--reading {options.reading}: the output has rows of {', '.join(sorted(names))}"
        )


def _draw(options: Options) -> int:
    if options.draw < 1:
        raise UserError(f"--draw {options.draw} must be at least 1")
    if options.audit.exists():
        raise UserError(f"--audit {options.audit} is there already; name a new file")
    unit = options.unit or "window"
    rows = (row for table in _windows(options) for row in table.select([*_AUDIT[:-2]]).to_pylist())

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return (row["uri"], *(row[name] for name in KEY))

    if unit == "window":
        chosen = heapq.nsmallest(
            options.draw, rows, key=lambda row: lot("\0".join(map(str, place(row))), options.seed)
        )
    else:
        kept = list(rows)
        videos = heapq.nsmallest(
            options.draw, {row["uri"] for row in kept}, key=lambda uri: lot(uri, options.seed)
        )
        order = {uri: k for k, uri in enumerate(videos)}
        chosen = sorted(
            (r for r in kept if r["uri"] in order), key=lambda r: (order[r["uri"]], place(r))
        )
    with options.audit.open("x", newline="") as out:
        writer = csv.DictWriter(out, _AUDIT)
        writer.writeheader()
        writer.writerows(row | {"unit": unit, "label": ""} for row in chosen)
    told = {"audit": str(options.audit), "windows": len(chosen), "unit": unit, "seed": options.seed}
    return tell(
        options, told,
        f"{options.audit}: {len(chosen)} windows to label, in the order in which to do it; then "
        f"emolake measure {options.output} --labels {options.audit}",
    )  # fmt: skip


def _lines(
    entries: Sequence[dict[str, Any]], by: tuple[str, ...], said: Said | None
) -> Iterator[str]:
    if said is None:
        print(
            "no labels: the model's answers are counted, with all their errors; --draw and --labels measure",
            file=sys.stderr,
        )
    elif said.untold or said.missed:
        print(
            f"{said.untold} labels say nothing of an emotion, {said.missed} are of windows that are not "
            "there",
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
        str(entry["n_labels"]), str(entry.get("worth", "-")),
    )  # fmt: skip
