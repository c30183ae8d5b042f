"""Late fusion: several models' scores of a window as one, weights fitted on labelled stretches.

A linear opinion pool: the fused probability is the weighted mean of the models'. The weights are the
mixture's of highest likelihood, found by expectation maximisation (Dempster et al. 1977), so they are
positive and sum to one and no model can be made to vote against itself.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.labelled import read_table
from emolake.pipeline.labels import canonical

_ROUNDS = 200
_FLOOR = 1e-6  # a model that gives a label no probability has not proven it impossible
_KEY = ("video_id", "segment", "track_id", "window")

Reading = dict[str, dict[str, float]]
"""One window: model -> canonical label -> probability."""


def fit_weights(annotations: pa.Table, labels: Path | str) -> dict[str, float]:
    """model -> weight, fitted on the windows whose middle lies in a labelled stretch.

    annotations: rows of schema.ANNOTATIONS; labels: Parquet or CSV with uri (or file name), label, and
    maybe start_s, end_s. UserError where no window is labelled.
    """
    stretches: dict[str, list[tuple[float, float, str]]] = {}
    for row in read_table(Path(labels)).to_pylist():
        end = row.get("end_s")
        span = (row.get("start_s") or 0.0, float("inf") if end is None else end)
        stretches.setdefault(row["uri"], []).append((*span, canonical(str(row["label"]))))
    windows = []
    for place, reading in _readings(annotations):
        middle = (place["start_s"] + place["end_s"]) / 2
        names = (place["uri"], posixpath.basename(place["uri"]))
        truth = [
            label
            for name in names
            for start, end, label in stretches.get(name, ())
            if start <= middle <= end
        ]
        if truth:
            windows.append({m: max(told.get(truth[0], 0.0), _FLOOR) for m, told in reading.items()})
    if not windows:
        raise UserError(f"{labels} labels no window of these annotations")
    models = sorted({model for window in windows for model in window})
    weights = dict.fromkeys(models, 1 / len(models))
    for _ in range(_ROUNDS):
        credit = dict.fromkeys(models, 0.0)
        for window in windows:
            whole = sum(weights[model] * p for model, p in window.items())
            for model, p in window.items():
                credit[model] += weights[model] * p / whole
        weights = {model: credit[model] / len(windows) for model in models}
    return weights


def fused(annotations: pa.Table, weights: Mapping[str, float]) -> pa.Table:
    """One row a window: its place, `emotion`, `confidence` and `scores` of the pool, and `models`, those
    that had a say; a window that some model did not read is shared out among the others."""
    rows = []
    for place, reading in _readings(annotations):
        heard = {model: weights[model] for model in reading if weights.get(model, 0.0) > 0}
        if not heard:
            continue
        total = sum(heard.values())
        scores: dict[str, float] = {}
        for model, weight in heard.items():
            for label, p in reading[model].items():
                scores[label] = scores.get(label, 0.0) + weight / total * p
        emotion = max(scores, key=lambda label: scores[label])
        told = {"emotion": emotion, "confidence": scores[emotion], "scores": list(scores.items())}
        rows.append(place | told | {"models": sorted(heard)})
    return pa.Table.from_pylist(rows, _FUSED)


def _readings(annotations: pa.Table) -> list[tuple[dict[str, Any], Reading]]:
    """Each window's place and what each model read there."""
    windows: dict[tuple[Any, ...], tuple[dict[str, Any], Reading]] = {}
    columns = [*_KEY, "uri", "start_s", "end_s", "model", "scores"]
    for row in annotations.select(columns).to_pylist():
        place = {name: row[name] for name in (*_KEY, "uri", "start_s", "end_s")}
        _, reading = windows.setdefault(tuple(row[name] for name in _KEY), (place, {}))
        told: dict[str, float] = {}
        for label, p in row["scores"]:
            told[canonical(label)] = told.get(canonical(label), 0.0) + p
        reading[row["model"]] = told
    return list(windows.values())


_FUSED = pa.schema(
    [
        *[(name, pa.string()) for name in ("video_id", "uri")],
        *[(name, pa.int32()) for name in ("segment", "track_id", "window")],
        *[(name, pa.float64()) for name in ("start_s", "end_s")],
        ("emotion", pa.string()),
        ("confidence", pa.float32()),
        ("scores", pa.map_(pa.string(), pa.float32())),
        ("models", pa.list_(pa.string())),
    ]
)
