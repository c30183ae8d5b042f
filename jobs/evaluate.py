"""`emolake evaluate`: a model against labelled pictures or videos, or an output against labels."""

from __future__ import annotations

import argparse
import math
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from jobs.cli import print_json
from pipeline.config import Config, load_config
from pipeline.corpus import is_video_name, stat_video
from pipeline.errors import UserError
from pipeline.labelled import labelled_rows, read_table
from pipeline.labels import label_set
from pipeline.lake.commit import first_model, time_weighted_scores
from pipeline.lake.reading import read_annotations
from pipeline.models.catalog import model_folder, model_revision
from pipeline.models.config import ModelConfig, read_config
from pipeline.schema import ATTRIBUTES
from pipeline.storage import Storage, parse_options


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
    elif "uri" in read_table(options.data).column_names:
        samples = _of_media(options, config, labels)
    else:
        samples = _of_pictures(options, config, labels)
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
    from pipeline.training.metrics import classification_scores

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


def _of_pictures(
    options: argparse.Namespace, config: ModelConfig, labels: tuple[str, ...]
) -> Iterator[Sample]:
    """Encoded pictures of one face each."""
    from pipeline.annotators.base import load_annotator
    from pipeline.annotators.still import still_window
    from pipeline.faces.mtcnn import Mtcnn
    from pipeline.training.faces import decode_picture

    annotator = load_annotator(options.model, _config(options).annotator, "cpu")
    mtcnn = Mtcnn()
    windows, seen = [], []
    for row, label in labelled_rows(options.data, labels, "image", optional=ATTRIBUTES):
        encoded = row.pop("image")
        try:
            picture = decode_picture(encoded)
        except ValueError:
            yield Sample(None, label, row)
            continue
        windows.append(still_window(picture, mtcnn, config.needs))
        seen.append((label, row))
    for annotation, (label, row) in zip(annotator.annotate(windows), seen, strict=True):
        yield Sample(annotation.scores, label, row)


def _of_media(
    options: argparse.Namespace, config: ModelConfig, labels: tuple[str, ...]
) -> Iterator[Sample]:
    """Videos, through the face stage as a job runs it, and pictures, by uri. What a video shows is
    the mean over the windows of all its faces, each weighted by its length."""
    from actors.face_actor import FaceActor, FaceSettings, SegmentPlanner
    from pipeline.annotators.base import WindowInput, load_annotator
    from pipeline.annotators.still import still_window
    from pipeline.faces.mtcnn import Mtcnn
    from pipeline.training.faces import decode_picture

    storage = Storage(parse_options(options.storage_options))
    chosen = _config(options)
    annotator = load_annotator(options.model, chosen.annotator, "cpu")
    settings = FaceSettings(
        chosen.decode, chosen.faces, chosen.windows, chosen.limits, config.needs,
        network=True, storage_options=dict(storage.options),
    )  # fmt: skip
    planner, actor, mtcnn = SegmentPlanner(settings), FaceActor(settings), Mtcnn()
    for row, label in labelled_rows(options.data, labels, "uri", optional=ATTRIBUTES):
        uri = _beside(options.data, row["uri"])
        if is_video_name(uri):
            found = actor(planner(_video_row(uri, storage))).to_pylist()
            windows = [window for segment in found for window in segment["windows"]]
            made = annotator.annotate(
                [WindowInput.of(window, config.needs, {}) for window in windows]
            )
            told = [
                window | {"scores": list(annotation.scores.items())}
                for window, annotation in zip(windows, made, strict=True)
            ]
            yield Sample(time_weighted_scores(told) if told else None, label, row)
        else:
            fs, path = storage.locate(uri)
            try:
                picture = decode_picture(fs.cat_file(path))
            except (OSError, ValueError):
                yield Sample(None, label, row)
                continue
            (read,) = annotator.annotate([still_window(picture, mtcnn, config.needs)])
            yield Sample(read.scores, label, row)


def _config(options: argparse.Namespace) -> Config:
    """Options of the stages that the model is scored through."""
    settings = list(options.settings)
    if options.label_set is not None:
        settings.append(f"annotator.label_set={options.label_set}")
    return load_config(None, settings)


def _beside(table: Path, uri: str) -> str:
    """Relative uris are relative to the folder of the table that names them."""
    if "://" in uri or posixpath.isabs(uri):
        return uri
    return posixpath.join(str(table.resolve().parent), uri)


def _video_row(uri: str, storage: Storage) -> Any:
    import pyarrow as pa

    from pipeline.schema import VIDEO_ROW

    video = stat_video(uri, storage)
    told = {"video_id": video.video_id, "uri": uri, "size": video.size, "corpus": "evaluation"}
    row = dict.fromkeys(VIDEO_ROW.names) | told | {"attempt": 1, "missing": video.missing}
    return pa.Table.from_pylist([row], VIDEO_ROW)


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
    known = ("start_s", "end_s", *ATTRIBUTES)
    for row, label in labelled_rows(options.labels, labels, "uri", optional=known):
        windows = _clipped(of_video, row)
        yield Sample(time_weighted_scores(windows) if windows else None, label, row)


def _answers(options: argparse.Namespace, of_video: Windows) -> dict[str, Any]:
    """Metrics of the further columns that the labels have: action units, numbers, sentences. Of
    several windows the longest in the span speaks; numbers are the mean by length."""
    from pipeline.training.answer_metrics import AU_SETS, action_unit_f1, pearson, rouge_l

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
