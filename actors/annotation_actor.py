"""Annotation actors: they own a GPU (or a CPU core) and a loaded model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.annotators.base import Annotation, Annotator, WindowInput, load_annotator
from pipeline.config import AnnotatorConfig
from pipeline.needs import Needs
from pipeline.schema import ANNOTATED_ROW
from pipeline.segments import failed_segment


@dataclass(frozen=True)
class AnnotationSettings:
    """Which models to load and how to run them."""

    models: tuple[str, ...]
    annotator: AnnotatorConfig


_CARRIED = ("track_id", "window", "start_s", "end_s", "n_frames", "n_interpolated", "bbox")
_TOLD = (
    *("emotion", "confidence", "description", "action_units"),
    *("valence", "arousal", "intensity", "transcript"),
)


class AnnotationActor:
    """Segments with faces (schema.FACES_ROW) -> with annotations (schema.ANNOTATED_ROW).

    The windows of all rows of a call go to each model together and are handed back to their rows.
    """

    def __init__(self, settings: AnnotationSettings) -> None:
        # Imported here and not above: this module is also loaded where only tasks run.
        import torch

        if not torch.cuda.is_available():
            # One thread a process, parallelism by processes: small batches lose by more threads.
            torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.annotators: list[Annotator] = [
            load_annotator(model, settings.annotator, device) for model in settings.models
        ]
        self.needs = Needs.of_all(annotator.needs for annotator in self.annotators)

    def __call__(self, segments: pa.Table) -> pa.Table:
        rows = segments.to_pylist(maps_as_pydicts=None)
        started = time.monotonic()
        inputs = [[self._input(row, window) for window in row["windows"]] for row in rows]
        flat = [window for windows in inputs for window in windows]
        told = [(annotator, self._annotated(annotator, flat)) for annotator in self.annotators]
        spent = time.monotonic() - started
        out, at = [], 0
        for row, windows in zip(rows, inputs, strict=True):
            mine = [(a, made[at : at + len(windows)]) for a, made in told]
            at += len(windows)
            out.append(_annotated_row(row, mine, spent * len(windows) / max(len(flat), 1)))
        return pa.Table.from_pylist(out, ANNOTATED_ROW)

    def _input(self, row: dict[str, Any], window: dict[str, Any]) -> WindowInput:
        attributes = {name: row[name] for name in ("age", "gender", "race") if row[name]}
        return WindowInput.of(window, self.needs, attributes)

    def _annotated(
        self, annotator: Annotator, windows: list[WindowInput]
    ) -> list[Annotation | Exception]:
        try:
            return list(annotator.annotate(windows))
        except Exception:
            # Once more one by one, so that a window the model cannot take costs its segment alone.
            return [_alone(annotator, window) for window in windows]


def _alone(annotator: Annotator, window: WindowInput) -> Annotation | Exception:
    try:
        return annotator.annotate([window])[0]
    except Exception as error:
        return error


def _annotated_row(
    row: dict[str, Any],
    told: list[tuple[Annotator, list[Annotation | Exception]]],
    seconds: float,
) -> dict[str, Any]:
    """A segment with what each annotator told of its windows; failed where one could not tell."""
    windows = row.pop("windows")
    error = next((t for _, made in told for t in made if isinstance(t, Exception)), None)
    if error is not None:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        row = failed_segment(row, "model_error", words) | {"tracks": []}
        told = []
    annotations = [
        {name: window[name] for name in _CARRIED}
        | {name: getattr(annotation, name) for name in _TOLD}
        | {
            "scores": list(annotation.scores.items()),
            "model": annotator.name,
            "model_revision": annotator.revision,
        }
        for annotator, made in told
        for window, annotation in zip(windows, made, strict=True)
        if isinstance(annotation, Annotation)
    ]
    return row | {"annotations": annotations, "annotate_seconds": seconds}
