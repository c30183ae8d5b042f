"""Annotation actors: they own a GPU (or a CPU core) and a loaded model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.annotators.base import Annotation, Annotator, WindowInput, load_annotator
from pipeline.config import AnnotatorConfig
from pipeline.schema import ANNOTATED_ROW
from pipeline.segments import failed_segment


@dataclass(frozen=True)
class AnnotationSettings:
    """Which model to load and how to run it."""

    model: str
    annotator: AnnotatorConfig


_CARRIED = ("track_id", "window", "start_s", "end_s", "n_interpolated", "bbox")


class AnnotationActor:
    """Segments with faces (schema.FACES_ROW) -> with annotations (schema.ANNOTATED_ROW).

    The windows of all rows of a call go to the model together and are handed back to their rows.
    """

    def __init__(self, settings: AnnotationSettings) -> None:
        # Imported here and not above: this module is also loaded where only tasks run.
        import torch

        if not torch.cuda.is_available():
            # One thread a process, parallelism by processes: small batches lose by more threads.
            torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.annotator: Annotator = load_annotator(settings.model, settings.annotator, device)

    def __call__(self, segments: pa.Table) -> pa.Table:
        rows = segments.to_pylist(maps_as_pydicts=None)
        started = time.monotonic()
        inputs = [(row, window) for row in rows for window in row["windows"]]
        try:
            made = self.annotator.annotate([_input(row, window) for row, window in inputs])
            told: list[Annotation | Exception] = list(made)
        except Exception:
            # Once more one by one, so that a window the model cannot take costs its segment alone.
            told = [self._alone(row, window) for row, window in inputs]
        spent = time.monotonic() - started
        out, at = [], 0
        for row in rows:
            mine = told[at : at + len(row["windows"])]
            at += len(mine)
            share = spent * len(mine) / max(len(inputs), 1)
            out.append(self._row(row, mine, share))
        return pa.Table.from_pylist(out, ANNOTATED_ROW)

    def _alone(self, row: dict[str, Any], window: dict[str, Any]) -> Annotation | Exception:
        try:
            return self.annotator.annotate([_input(row, window)])[0]
        except Exception as error:
            return error

    def _row(
        self, row: dict[str, Any], told: list[Annotation | Exception], seconds: float
    ) -> dict[str, Any]:
        windows = row.pop("windows")
        errors = [t for t in told if isinstance(t, Exception)]
        if errors:
            words = f"{type(errors[0]).__name__}: {' '.join(str(errors[0]).split())[:300]}"
            row = failed_segment(row, "model_error", words) | {"tracks": []}
            windows, told = [], []
        annotations = [
            {name: window[name] for name in _CARRIED}
            | {
                "n_frames": len(window["crops"]),
                "emotion": annotation.emotion,
                "confidence": annotation.confidence,
                "scores": list(annotation.scores.items()),
                "model": self.annotator.name,
                "model_revision": self.annotator.revision,
            }
            for window, annotation in zip(windows, told, strict=True)
            if isinstance(annotation, Annotation)
        ]
        return row | {"annotations": annotations, "annotate_seconds": seconds}


def _input(row: dict[str, Any], window: dict[str, Any]) -> WindowInput:
    told = {name: row[name] for name in ("age", "gender", "race") if row[name]}
    return WindowInput.of(window, told)
