"""`emolake evaluate`: a model against labelled pictures or videos, or an output against labels."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from emolake.jobs.cli import print_json
from emolake.jobs.comparison import (
    labelled_rows,
    labels_asked,
    longest,
    of_a_table,
    pair_line,
    reading,
)
from emolake.jobs.parser import Options, Parser, table_options
from emolake.jobs.setting import ChosenModel
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.audit import KEY
from emolake.pipeline.evaluation.labelled import LabelledTable, read_table
from emolake.pipeline.evaluation.scoring import scored
from emolake.pipeline.lake.commit import first_model, seconds_of
from emolake.pipeline.lake.reading import read_annotations
from emolake.pipeline.storage.files import parse_options


def declare(parser: Parser) -> None:
    parser.option(
        "--model",
        "M,...",
        "name or folder; several are read in one pass and compared",
        default="emo-llama-tiny",
    )
    parser.option("--output", "OUTPUT", "score what stands there instead")
    parser.option(
        "--labels",
        "FILE",
        "for --output: Parquet or CSV with uri (or file name), label, and maybe start_s, end_s",
        type=Path,
    )
    parser.option("--reading", "MODEL", "for --output: whose rows, where several models wrote")
    table_options(parser)
    parser.option(
        "--corruptions",
        "NAME,...",
        "for --data: score the pictures also as films spoil them, a line each (all, or those named)",
        nargs="?",
        const="all",
    )
    parser.option("--html", "FILE", "page of plots to write, to be read offline", type=Path)
    parser.calls(run, "emolake evaluate --model emo-llama-tiny --data fer2013_valid.parquet")


def run(options: Options) -> int:
    if (options.output is None) == (options.data is None):
        raise UserError("give --data FILE to score a model, or --output OUTPUT with --labels FILE")
    if options.corruptions and options.data is None:
        raise UserError("--corruptions spoils the pictures of --data; an output has none")
    told = _of_an_output(options) if options.output is not None else of_a_table(options)
    if options.html is not None:
        from emolake.pipeline.presentation.evaluation.page import render

        options.html.write_text(render(told["models"], told["pairs"]))
    if options.json:
        # One model as ever: its figures alone. Several: a list, what differs beside each.
        several = len(told["models"]) > 1
        print_json(told["models"] if several else told["models"][0])
        return 0
    for entry in told["models"]:
        _print(entry)
    for pair in told["pairs"]:
        print(pair_line(pair))
    return 0


def _print(entry: dict[str, Any]) -> None:
    who = f"{entry['model']['name']}: " if "model" in entry else ""
    print(
        f"{who}{entry['n']} samples: accuracy {_with_interval(entry, 'war')}, "
        f"UAR {_with_interval(entry, 'uar')}, macro F1 {entry['macro_f1']:.4f}, "
        f"ECE {_with_interval(entry, 'ece')}"
        + (f"; {entry['unreadable']} without a reading" if entry["unreadable"] else "")
        + (f"; {entry['outside']} of labels outside the set" if entry.get("outside") else "")
    )
    print(f"  with a fifth abstained: accuracy {_with_interval(entry, 'war_covered')}")
    if entry.get("windows_per_second"):
        print(f"  {entry['windows_per_second']:.1f} windows a second of one annotation actor")
    if "cross_entropy" in entry:
        print(
            f"  against the votes: soft accuracy {_with_interval(entry, 'soft_accuracy')}, "
            f"cross-entropy {_with_interval(entry, 'cross_entropy')}, "
            f"total variation {entry['total_variation']:.4f}"
        )
    if "one_person" in entry:
        person = entry["one_person"]
        print(
            f"  one person of the panel against the others: accuracy {_with_interval(person, 'war')}, "
            f"UAR {person['uar']:.4f}"
        )
    for label, recall in entry["per_class_recall"].items():
        print(f"  {label:<14} {'-' if recall is None else f'{recall:.3f}'}")
    for name, worse in entry.get("corruptions", {}).items():
        lost = 100 * (entry["war"] - worse["war"])
        print(f"  {name:<14} accuracy {_with_interval(worse, 'war')}, {lost:.1f} points lost")


def _with_interval(entry: Mapping[str, Any], name: str) -> str:
    if f"{name}_low" not in entry:
        return f"{entry[name]:.4f}"
    return f"{entry[name]:.4f} ({entry[f'{name}_low']:.4f} to {entry[f'{name}_high']:.4f})"


def _of_an_output(options: Options) -> dict[str, Any]:
    """An annotated output: each label against the windows that its span overlaps."""
    if options.labels is None:
        raise UserError("--output needs --labels FILE: a Parquet or CSV with uri and label")
    models = tuple(ChosenModel.of(name.strip()) for name in options.model.split(","))
    labels = labels_asked(options, models)
    of_video = _windows_by_video(options)
    table = LabelledTable.read(options.labels)
    given = table.told.to_pylist()
    samples = [
        reading(row.sample, _clipped(of_video, given[row.number]))
        for row in labelled_rows(table, labels)
    ]
    entry = scored(samples, labels) | _answers(options, of_video)
    if "rouge_l" in entry:
        units = entry.get("action_unit_f1", {}).get("faba-instruct", {}).get("mean")
        entry["rege"] = {"emotion": entry["war"] + entry["rouge_l"]}
        if units is not None:
            entry["rege"]["action_units"] = units + entry["rouge_l"]
    return {"models": [entry], "pairs": []}


Windows = dict[str, list[dict[str, Any]]]
"""Annotations by uri and by file name."""
_GIVEN = ("scores", "description", "action_units", "valence", "arousal", "intensity", "sentiment")
_NUMBERS = ("valence", "arousal", "intensity", "sentiment")


def _windows_by_video(options: Options) -> Windows:
    """One reading a window: of the model that was asked for, or the first."""
    key = ("video_id", "uri", "segment", "track_id", "window", "start_s", "end_s", "model")
    table = read_annotations(
        options.output, parse_options(options.storage_options), [*key, *_GIVEN]
    )
    rows = table.to_pylist()
    if options.reading is not None:
        names = sorted({row["model"] for row in rows})
        if options.reading not in names:
            raise UserError(
                f"--reading {options.reading}: the output has rows of {', '.join(names)}"
            )
        rows = [row for row in rows if row["model"] == options.reading]
    by_name: Windows = {}
    for row in first_model(rows):
        for name in {row["uri"], posixpath.basename(row["uri"])}:
            by_name.setdefault(name, []).append(row)
    return by_name


def _clipped(windows: Windows, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The windows that a labelled span overlaps, cut to it; all of the video's without a span, and of one
    track or one window where the row names it."""
    named = [name for name in KEY if row.get(name) is not None]
    start, end = row.get("start_s") or 0.0, row.get("end_s")
    return [
        window
        | {"start_s": max(window["start_s"], start)}
        | ({} if end is None else {"end_s": min(window["end_s"], end)})
        for window in windows.get(row["uri"], [])
        if window["end_s"] > start and (end is None or window["start_s"] < end)
        if all(window[name] == row[name] for name in named)
    ]


def _answers(options: Options, of_video: Windows) -> dict[str, Any]:
    """Metrics of the further columns that the labels have: action units, numbers, sentences. Of
    several windows the longest in the span speaks; numbers are the mean by length."""
    from emolake.pipeline.evaluation.answer_metrics import AU_SETS, action_unit_f1, pearson, rouge_l

    table = read_table(options.labels)
    rows = [(row, _clipped(of_video, row)) for row in table.to_pylist()]
    rows = [(row, windows) for row, windows in rows if windows]
    told: dict[str, Any] = {}
    if "action_units" in table.column_names:
        given = [longest(windows)["action_units"] or [] for _, windows in rows]
        true = [_units(row["action_units"]) for row, _ in rows]
        told["action_unit_f1"] = {
            name: action_unit_f1(given, true, units) for name, units in AU_SETS.items()
        }
    for name in _NUMBERS:
        if name in table.column_names:
            pairs = [(_mean(windows, name), row[name]) for row, windows in rows]
            known = [(g, t) for g, t in pairs if g is not None and t is not None]
            told.setdefault("pearson", {})[name] = pearson(
                [g for g, _ in known], [float(t) for _, t in known]
            )
    if "description" in table.column_names and rows:
        each = [
            rouge_l(longest(windows)["description"] or "", row["description"] or "")
            for row, windows in rows
        ]
        told["rouge_l"] = fmean(each)
    return told


def _mean(windows: list[dict[str, Any]], name: str) -> float | None:
    told = [(w[name], seconds_of(w)) for w in windows if w[name] is not None]
    return sum(v * weight for v, weight in told) / sum(w for _, w in told) if told else None


def _units(told: Any) -> list[str]:
    """A list, or text such as "AU1, AU12" or "1 12"."""
    words = re.findall(r"\d+", told) if isinstance(told, str) else [str(u) for u in told or ()]
    return [f"AU{word.removeprefix('AU')}" for word in words]
