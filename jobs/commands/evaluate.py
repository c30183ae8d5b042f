"""`emolake evaluate`: a model against labelled pictures or videos, or an output against labels."""

from __future__ import annotations

import argparse
import math
import posixpath
import re
from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from emolake.jobs.cli import print_json
from emolake.jobs.commands.setup import ChosenModel, model_files, needs_of
from emolake.pipeline.config import Config, load_config
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.labelled import LabelledTable, read_table
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.labels import ATTRIBUTES, label_set
from emolake.pipeline.lake.commit import first_model, time_weighted_scores
from emolake.pipeline.lake.reading import read_annotations
from emolake.pipeline.models.catalog import model_folder, model_revision
from emolake.pipeline.models.config import read_config
from emolake.pipeline.storage.files import Storage, parse_options


class Sample(NamedTuple):
    """scores: by label, None where nothing could be read; label: index of the true one; row: of the
    table, for the attributes it has."""

    scores: dict[str, float] | None
    label: int
    row: dict[str, Any]


def evaluate_command(options: argparse.Namespace) -> int:
    config = read_config(model_folder(options.model))
    answers: dict[str, Any] = {}
    labels = label_set(options.label_set or config.label_set)
    if (options.output is None) == (options.data is None):
        raise UserError("give --data FILE to score a model, or --output OUTPUT with --labels FILE")
    if options.output is not None:
        if options.labels is None:
            raise UserError("--output needs --labels FILE: a Parquet or CSV with uri and label")
        of_video = _windows_by_video(options)
        samples = _of_output(options, labels, of_video)
        answers = _answers(options, of_video)
    else:
        storage = Storage(parse_options(options.storage_options))
        table = LabelledTable.read(options.data, storage)
        settings = _config(options)
        models = (ChosenModel.of(options.model),)
        model_files(settings, models)
        needs = needs_of(models, settings)
        samples = _of_table(table, table.label_indices(labels), settings, needs)
    made = list(samples)
    result = _scored(made, labels) | _slices(made, labels) | answers
    if options.output is None:
        revision = model_revision(model_folder(options.model))
        result["model"] = {"name": config.name, "revision": revision}
    if "rouge_l" in result:
        units = result.get("action_unit_f1", {}).get("faba-instruct", {}).get("mean")
        result["rege"] = {"emotion": result["war"] + result["rouge_l"]}
        if units is not None:
            result["rege"]["action_units"] = units + result["rouge_l"]
    if options.json:
        print_json(result)
        return 0
    print(
        f"{result['n']} samples: accuracy {result['war']:.4f}, UAR {result['uar']:.4f}, "
        f"macro F1 {result['macro_f1']:.4f}, ECE {result['ece']:.4f}"
        + (f"; {result['unreadable']} without a reading" if result["unreadable"] else "")
    )
    for label, recall in result["per_class_recall"].items():
        print(f"  {label:<14} {'-' if recall is None else f'{recall:.3f}'}")
    return 0


def _scored(samples: list[Sample], labels: tuple[str, ...]) -> dict[str, Any]:
    from emolake.pipeline.evaluation.metrics import classification_scores

    read = [(scores, label) for scores, label, _ in samples if scores is not None]
    if not read:
        raise UserError(f"none of {len(samples)} samples has a reading; is it the right file?")
    probabilities = np.array([[scores.get(label, 0.0) for label in labels] for scores, _ in read])
    # A model with more labels than were asked about: what it gave to the others is shared out.
    probabilities /= np.maximum(probabilities.sum(1, keepdims=True), 1e-9)
    scores = classification_scores(probabilities, np.array([label for _, label in read]))
    return {
        "n": scores.n,
        "war": scores.war,
        "uar": scores.uar,
        "macro_f1": scores.macro_f1,
        "weighted_f1": scores.weighted_f1,
        "ece": scores.ece,
        "nll": scores.nll,
        "brier": scores.brier,
        "labels": list(labels),
        "confusion": scores.confusion.tolist(),
        "per_class_recall": {
            label: None if math.isnan(recall) else float(recall)
            for label, recall in zip(labels, scores.recall, strict=True)
        },
        "unreadable": len(samples) - len(read),
    }


def _slices(samples: list[Sample], labels: tuple[str, ...]) -> dict[str, Any]:
    """How well each group is read, where the table says who belongs to which."""
    told: dict[str, Any] = {}
    for name in ATTRIBUTES:
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.row.get(name) is not None:
                groups.setdefault(str(sample.row[name]), []).append(sample)
        for group, members in sorted(groups.items()):
            if any(sample.scores is not None for sample in members):
                scores = _scored(members, labels)
                kept = {k: scores[k] for k in ("n", "war", "uar", "macro_f1", "ece", "unreadable")}
                told.setdefault(name, {})[group] = kept
    return {"by_attribute": told} if told else {}


def _of_table(
    table: LabelledTable, truth: list[int | None], config: Config, needs: Needs
) -> Iterator[Sample]:
    """Labelled pictures and videos through the stages of the main job. What a video shows is the mean
    over the windows of all its faces, each weighted by its length."""
    from emolake.jobs.graph.labelled import (
        annotated_table,  # brings Ray, which scoring an output does without
    )

    told: dict[int, list[dict[str, Any]]] = {}
    for row, found in annotated_table(table, config, needs):
        told.setdefault(row, []).extend(found["annotations"])
    attributes = table.attributes()
    for row, label in enumerate(truth):
        if label is not None:
            windows = told.get(row)
            scores = time_weighted_scores(windows) if windows else None
            yield Sample(scores, label, attributes[row])


def _config(options: argparse.Namespace) -> Config:
    """Options of the stages that the model is scored through."""
    settings = list(options.settings)
    if options.label_set is not None:
        settings.append(f"annotator.label_set={options.label_set}")
    return load_config(None, settings, model=options.model)


Windows = dict[str, list[dict[str, Any]]]
"""Annotations by uri and by file name."""
_GIVEN = ("scores", "description", "action_units", "valence", "arousal", "intensity", "sentiment")
_NUMBERS = ("valence", "arousal", "intensity", "sentiment")


def _windows_by_video(options: argparse.Namespace) -> Windows:
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


def _of_output(
    options: argparse.Namespace, labels: tuple[str, ...], of_video: Windows
) -> Iterator[Sample]:
    """An annotated output: each label against the windows that its span overlaps."""
    table = LabelledTable.read(options.labels)
    rows = zip(table.told.to_pylist(), table.label_indices(labels), strict=True)
    for (row, label), attributes in zip(rows, table.attributes(), strict=True):
        if label is not None:
            windows = _clipped(of_video, row)
            scores = time_weighted_scores(windows) if windows else None
            yield Sample(scores, label, attributes)


def _answers(options: argparse.Namespace, of_video: Windows) -> dict[str, Any]:
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
