"""Samples that people labelled and a model read -> every figure that `emolake evaluate` tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.intervals import (
    Counts,
    Predictions,
    bootstrap,
    compared,
    with_intervals,
)
from emolake.pipeline.evaluation.metrics import classification_scores, reliability, risk_coverage
from emolake.pipeline.labels import ATTRIBUTES

_COVERED = 0.8
_KEPT_OF_A_SLICE = ("n", "war", "uar", "macro_f1", "ece")


@dataclass(frozen=True)
class Sample:
    """scores: by label, None where nothing could be read; label: index of what most people saw; votes:
    (L,) what all saw, where they were asked; unit: of what it is a part, a picture, video or person;
    attributes: of the person it shows; quality: of the face, as the tables tell it."""

    scores: Mapping[str, float] | None
    label: int
    votes: NDArray[np.float64] | None = None
    unit: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    quality: Mapping[str, float | None] = field(default_factory=dict)


def predictions(samples: Sequence[Sample], labels: tuple[str, ...]) -> Predictions:
    """Of the samples with a reading. UserError where none has one."""
    read = [sample for sample in samples if sample.scores is not None]
    if not read:
        raise UserError(f"none of {len(samples)} samples has a reading; is it the right file?")
    given = [[(s.scores or {}).get(label, 0.0) for label in labels] for s in read]
    probabilities = np.array(given, np.float64)
    # A model with more labels than were asked about: what it gave to the others is shared out.
    probabilities /= np.maximum(probabilities.sum(1, keepdims=True), 1e-9)
    votes = [s.votes for s in read if s.votes is not None]
    units = [s.unit or str(k) for k, s in enumerate(read)]
    return Predictions(
        probabilities,
        np.array([s.label for s in read], np.int64),
        np.stack(votes) if len(votes) == len(read) else None,
        np.unique(units, return_inverse=True)[1].astype(np.int64),
    )


def scored(samples: Sequence[Sample], labels: tuple[str, ...]) -> dict[str, Any]:
    """Figures with their 95 % intervals, confusion, calibration and what abstaining would bring."""
    given = predictions(samples, labels)
    scores = classification_scores(given.probabilities, given.truth)
    return {
        "n": scores.n,
        **_figures(given),
        "labels": list(labels),
        "confusion": scores.confusion.tolist(),
        "per_class_recall": {
            label: None if math.isnan(recall) else float(recall)
            for label, recall in zip(labels, scores.recall, strict=True)
        },
        "unreadable": len(samples) - scores.n,
        "reliability": [asdict(one) for one in reliability(given.probabilities, given.truth)],
        "risk_coverage": [
            asdict(one) for one in risk_coverage(given.probabilities.max(1), given.right)
        ],
        **_sliced("by_attribute", _ATTRIBUTE_GROUPS, samples, labels),
        **_sliced("by_quality", _QUALITY_GROUPS, samples, labels),
    }


def _figures(given: Predictions) -> dict[str, float]:
    """war_covered: accuracy where the model may abstain from a fifth."""

    def measure(counts: Counts | None = None) -> dict[str, float]:
        return given.figures(counts) | {"war_covered": _covered(given, counts)}

    return with_intervals(measure(), bootstrap(given.units, measure))


def _covered(given: Predictions, counts: Counts | None) -> float:
    order = np.argsort(-given.probabilities.max(1), kind="stable")
    times = np.ones(len(order), np.int64) if counts is None else counts[order]
    # However few there are, somebody is answered.
    kept = np.cumsum(times) <= max(_COVERED * times.sum(), times[times > 0][0])
    return float((given.right[order] * times)[kept].sum() / times[kept].sum())


def pairs(samples: Mapping[str, Sequence[Sample]], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each two models on the samples that both could read."""
    names = list(samples)
    told = []
    for at, first in enumerate(names):
        for second in names[at + 1 :]:
            both = [
                (a, b)
                for a, b in zip(samples[first], samples[second], strict=True)
                if a.scores is not None and b.scores is not None
            ]
            if both:
                one, other = (predictions(side, labels) for side in zip(*both, strict=True))
                told.append(
                    {"first": first, "second": second, "n": len(both)} | compared(one, other)
                )
    return told


Group = Callable[[Sample], str | None]


def _sliced(
    column: str, groups: Mapping[str, Group], samples: Sequence[Sample], labels: tuple[str, ...]
) -> dict[str, Any]:
    """How well each group is read, where it is told who belongs to which."""
    told: dict[str, Any] = {}
    for of, group_of in groups.items():
        members: dict[str, list[Sample]] = {}
        for sample in samples:
            group = group_of(sample)
            if group is not None:
                members.setdefault(group, []).append(sample)
        for group, some in sorted(members.items()):
            if any(sample.scores is not None for sample in some):
                given = predictions(some, labels)
                figures = {"n": len(given.truth)} | with_intervals(
                    given.figures(), bootstrap(given.units, given.figures)
                )
                kept = {
                    name: value
                    for name, value in figures.items()
                    if name.removesuffix("_low").removesuffix("_high") in _KEPT_OF_A_SLICE
                }
                kept["unreadable"] = len(some) - len(given.truth)
                told.setdefault(of, {})[group] = kept
    return {column: told} if told else {}


def _attribute(name: str) -> Group:
    return lambda sample: sample.attributes.get(name)


def _between(name: str, edges: Sequence[float], unit: str = "") -> Group:
    def group(sample: Sample) -> str | None:
        value = sample.quality.get(name)
        if value is None:
            return None
        k = int(np.searchsorted(edges, abs(value), "right"))
        low = f"{edges[k - 1]:g}" if k else "0"
        return (
            f"{k}: {low} to {edges[k]:g}{unit}" if k < len(edges) else f"{k}: {low}{unit} and more"
        )

    return group


_ATTRIBUTE_GROUPS: dict[str, Group] = {name: _attribute(name) for name in ATTRIBUTES}
_QUALITY_GROUPS: dict[str, Group] = {
    "face_px": _between("face_px", (32, 64, 128), " px"),
    "blur": _between("blur", (0.25, 0.5, 0.75)),
    "brightness": _between("brightness", (0.25, 0.5, 0.75)),
    "yaw": _between("yaw", (15, 30, 45), " degrees"),
    "pitch": _between("pitch", (10, 20, 30), " degrees"),
    "roll": _between("roll", (10, 20, 30), " degrees"),
}
