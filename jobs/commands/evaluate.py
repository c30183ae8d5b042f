"""`emolake evaluate`: a model against labelled pictures or videos, or an output against labels."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from emolake.jobs.cli import print_json
from emolake.jobs.options import load_config
from emolake.jobs.parser import Options, Parser, storage_option
from emolake.jobs.setting import ChosenModel, model_files, names_apart, needs_of, pinned_models
from emolake.pipeline.config import Config
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.corruptions import CORRUPTIONS
from emolake.pipeline.evaluation.intervals import one_person
from emolake.pipeline.evaluation.labelled import LabelledTable, read_table
from emolake.pipeline.evaluation.scoring import Sample, pairs, scored
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.labels import label_set
from emolake.pipeline.lake.commit import first_model, time_weighted_scores
from emolake.pipeline.lake.reading import read_annotations
from emolake.pipeline.storage.files import Storage, parse_options


def declare(parser: Parser) -> None:
    parser.option(
        "--model",
        "M,...",
        "name or folder; several are read in one pass and compared",
        default="emo-llama-tiny",
    )
    parser.option(
        "--data",
        "FILE",
        "Parquet, CSV or JSONL with label, and image, uri or frames; a file or fsspec URI",
    )
    parser.option("--output", "OUTPUT", "score what stands there instead")
    parser.option(
        "--labels",
        "FILE",
        "for --output: Parquet or CSV with uri (or file name), label, and maybe start_s, end_s",
        type=Path,
    )
    parser.option("--reading", "MODEL", "for --output: whose rows, where several models wrote")
    storage_option(parser)
    parser.option("--label-set", "NAME", "labels asked for (default: model's)")
    parser.option(
        "--corruptions",
        "NAME,...",
        "for --data: score the pictures also as films spoil them, a line each (all, or those named)",
        nargs="?",
        const="all",
    )
    parser.option("--html", "FILE", "page of plots to write, to be read offline", type=Path)
    parser.pairs(
        "--set",
        "for --data: one option, for example annotator.precision=bfloat16; repeatable",
        "settings",
    )
    parser.calls(run, "emolake evaluate --model emo-llama-tiny --data fer2013_valid.parquet")


def run(options: Options) -> int:
    if (options.output is None) == (options.data is None):
        raise UserError("give --data FILE to score a model, or --output OUTPUT with --labels FILE")
    if options.corruptions and options.data is None:
        raise UserError("--corruptions spoils the pictures of --data; an output has none")
    told = _of_an_output(options) if options.output is not None else _of_a_table(options)
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
        print(
            f"{pair['first']} less {pair['second']} on {pair['n']} samples: accuracy "
            f"{_signed(pair, 'war')}, UAR {_signed(pair, 'uar')}, McNemar p {pair['p_mcnemar']:.2g}"
        )
    return 0


def _of_a_table(options: Options) -> dict[str, Any]:
    """Each model on the same labelled media, through the stages of the main job."""
    corruptions = _corruptions(options.corruptions)
    config = pinned_models(_config(options))
    models = tuple(ChosenModel.of(name) for name in config.models)
    labels = _asked(options, models)
    names_apart(models)
    model_files(config, models)
    needs = needs_of(models, config)
    storage = Storage(parse_options(options.storage_options))
    table = LabelledTable.read(options.data, storage)
    rows = _labelled_rows(table, labels)
    from emolake.jobs.graph.labelled import running_ray  # Ray; scoring an output does without

    read: dict[str | None, dict[str, list[Sample]]] = {}
    with running_ray(config.resources):
        for corruption in (None, *corruptions):
            read[corruption] = _annotated(table, rows, models, config, needs, corruption)
    samples = read.pop(None)
    spoilt: dict[str, dict[str, Any]] = {model.config.name: {} for model in models}
    for corruption, worse in read.items():
        for name, of_model in worse.items():
            figures = scored(of_model, labels)
            kept = ("war", "war_low", "war_high", "uar", "uar_low", "uar_high", "ece", "unreadable")
            spoilt[name][str(corruption)] = {key: figures[key] for key in kept}
    outside = sum(label is not None for label in table.column("label")) - len(rows)
    panel = _panel(table, rows)
    entries = [
        scored(samples[model.config.name], labels)
        | {"outside": outside}
        | panel
        | ({"corruptions": spoilt[model.config.name]} if options.corruptions else {})
        | {"model": model.told}
        for model in models
    ]
    return {"models": entries, "pairs": pairs(samples, labels)}


def _corruptions(asked: str | None) -> tuple[str, ...]:
    if asked is None:
        return ()
    names = tuple(CORRUPTIONS) if asked == "all" else tuple(asked.split(","))
    for name in names:
        if name not in CORRUPTIONS:
            raise UserError(f"--corruptions {name}: known are {', '.join(CORRUPTIONS)}, and all")
    return names


def _asked(options: Options, models: tuple[ChosenModel, ...]) -> tuple[str, ...]:
    sets = {options.label_set or model.config.label_set for model in models}
    if len({label_set(name) for name in sets}) > 1:
        raise UserError(
            f"the models have different label sets ({', '.join(sorted(sets))}); give --label-set"
        )
    return label_set(sets.pop())


@dataclass(frozen=True)
class LabelledRow:
    """A row of a table that has a label of the set: its number, and the sample it is without a reading."""

    number: int
    sample: Sample


def _labelled_rows(table: LabelledTable, labels: tuple[str, ...]) -> list[LabelledRow]:
    votes = table.votes(labels)
    attributes, units = table.attributes(), table.units()
    return [
        LabelledRow(
            number,
            Sample(
                None,
                label,
                votes.shares[number] if votes is not None else None,
                units[number],
                attributes[number],
            ),
        )
        for number, label in enumerate(table.label_indices(labels))
        if label is not None
    ]


def _annotated(
    table: LabelledTable,
    rows: list[LabelledRow],
    models: tuple[ChosenModel, ...],
    config: Config,
    needs: Needs,
    corruption: str | None,
) -> dict[str, list[Sample]]:
    """By model, a sample for each of `rows`. What a video shows is the mean over the windows of all its
    faces, each weighted by its length."""
    from emolake.jobs.graph.labelled import annotated_table

    told: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number, found in annotated_table(table, config, needs, corruption):
        for window in found["annotations"]:
            told.setdefault((window["model"], number), []).append(window)
    return {
        model.config.name: [
            _read(row.sample, told.get((model.config.name, row.number), [])) for row in rows
        ]
        for model in models
    }


def _read(sample: Sample, windows: list[dict[str, Any]]) -> Sample:
    if not windows:
        return sample
    quality = _longest(windows).get("quality") or {}
    return replace(sample, scores=time_weighted_scores(windows), quality=quality)


def _panel(table: LabelledTable, rows: list[LabelledRow]) -> dict[str, Any]:
    """What one of the people who voted would score, where the votes were kept as they were cast."""
    votes = table.votes_as_cast()
    if votes is None:
        return {}
    numbers = np.array([row.number for row in rows])
    truth = np.array([row.sample.label for row in rows])
    return {"one_person": one_person(votes[numbers], truth)}


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


def _signed(pair: Mapping[str, Any], name: str) -> str:
    low, high = pair[f"{name}_low"], pair[f"{name}_high"]
    return f"{pair[name]:+.4f} ({low:+.4f} to {high:+.4f})"


def _config(options: Options) -> Config:
    """Options of the stages that the models are scored through."""
    settings = list(options.settings)
    if options.label_set is not None:
        settings.append(f"annotator.label_set={options.label_set}")
    return load_config(None, settings, model=options.model)


def _of_an_output(options: Options) -> dict[str, Any]:
    """An annotated output: each label against the windows that its span overlaps."""
    if options.labels is None:
        raise UserError("--output needs --labels FILE: a Parquet or CSV with uri and label")
    models = tuple(ChosenModel.of(name.strip()) for name in options.model.split(","))
    labels = _asked(options, models)
    of_video = _windows_by_video(options)
    table = LabelledTable.read(options.labels)
    given = table.told.to_pylist()
    samples = [
        _read(row.sample, _clipped(of_video, given[row.number]))
        for row in _labelled_rows(table, labels)
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
    """The windows that a labelled span overlaps, cut to it; all of the video's without a span."""
    start, end = row.get("start_s") or 0.0, row.get("end_s")
    return [
        window
        | {"start_s": max(window["start_s"], start)}
        | ({} if end is None else {"end_s": min(window["end_s"], end)})
        for window in windows.get(row["uri"], [])
        if window["end_s"] > start and (end is None or window["start_s"] < end)
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
        given = [_longest(windows)["action_units"] or [] for _, windows in rows]
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
            rouge_l(_longest(windows)["description"] or "", row["description"] or "")
            for row, windows in rows
        ]
        told["rouge_l"] = fmean(each)
    return told


def _longest(windows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(windows, key=lambda window: window["end_s"] - window["start_s"])


def _mean(windows: list[dict[str, Any]], name: str) -> float | None:
    told = [(w[name], max(w["end_s"] - w["start_s"], 1e-3)) for w in windows if w[name] is not None]
    return sum(v * weight for v, weight in told) / sum(w for _, w in told) if told else None


def _units(told: Any) -> list[str]:
    """A list, or text such as "AU1, AU12" or "1 12"."""
    words = re.findall(r"\d+", told) if isinstance(told, str) else [str(u) for u in told or ()]
    return [f"AU{word.removeprefix('AU')}" for word in words]
