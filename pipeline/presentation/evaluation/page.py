"""An evaluation as one offline page: figures with their intervals, reliability, confusion, risk against
coverage; SVG drawn here, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

SIDE = 260  # of a square plot, SVG units
_FIGURES = {
    "war": "accuracy",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "war_covered": "accuracy with a fifth abstained",
    "soft_accuracy": "soft accuracy",
    "cross_entropy": "cross-entropy to the votes",
    "total_variation": "total variation from the votes",
}


def render(models: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> str:
    """models: entries of `emolake evaluate --json`; pairs: comparisons of two of them each."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.globals.update(
        side=SIDE, figures=_FIGURES, coverage_line=coverage_line, shade=shade, percent=percent
    )
    return environment.get_template("page.html.j2").render(models=models, pairs=pairs)


def coverage_line(curve: Sequence[Mapping[str, float]], floor: float) -> str:
    """SVG points of accuracy, from `floor` to 1, against coverage."""
    points = []
    for at in curve:
        x = SIDE * at["coverage"]
        y = SIDE * (1 - (at["accuracy"] - floor) / (1 - floor))
        points.append(f"{x:.1f},{y:.1f}")
    return " ".join(points)


def shade(count: int, row: Sequence[int]) -> float:
    """Opacity of a cell of the confusion matrix: its part of what is truly of that label."""
    return round(count / max(sum(row), 1), 3)


def percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.1f} %"
