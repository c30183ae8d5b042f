"""Annotation actors: they own a GPU (or a CPU core) and a loaded model."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from emolake.actors.device import blame_device, here, in_hand
from emolake.pipeline.annotators.base import Annotation, Annotator, WindowInput, load_annotator
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.corpus.segments import failed_segment
from emolake.pipeline.errors import DeviceFailed, JobFailed, in_a_line
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.labels import ATTRIBUTES
from emolake.pipeline.lake.schema import ANNOTATED_ROW, ENDPOINT_USAGE, VIDEO_ITSELF
from emolake.pipeline.models.catalog import model_path, read_config
from emolake.pipeline.models.inference_only import import_for_inference
from emolake.pipeline.video.sound import Sound
from emolake.pipeline.video.transcripts import Cue, said_in, spans_of


@dataclass(frozen=True)
class AnnotationSettings:
    """Which models to load and how to run them. device: `cuda` where the actor was granted a GPU;
    revisions: those the run was planned with, where that is to be checked; environment: variables of the
    driver's that models read, such as an endpoint's key; own_process: whether nothing but the actor runs in
    its process."""

    models: tuple[str, ...]
    annotator: AnnotatorConfig
    speech_seconds: float = 0.0
    store_attributes: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    revisions: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    own_process: bool = False


_CARRIED = (
    *("track_id", "window", "start_s", "end_s"),
    *("n_frames", "n_interpolated", "bbox", "quality"),
)
_TOLD = (
    *("emotion", "confidence", "description", "action_units"),
    *("valence", "arousal", "intensity", "sentiment", "transcript", "absent"),
)


_MOST_FAILED_IN_A_ROW = 25
_AT_ONCE = 256 * 1024 * 1024  # bytes of windows that are taken out of a call's rows
_READ = 64  # windows at a time


class AnnotationActor:
    """Segments with faces (schema.FACES_ROW) -> with annotations (schema.ANNOTATED_ROW).

    The windows of all rows of a call go to each model together and are handed back to their rows; those of
    crowds, gigabytes, so many at a time.
    """

    def __init__(self, settings: AnnotationSettings) -> None:
        # Imported here and not above: this module is also loaded where only tasks run.
        import torch

        if settings.own_process and _makes_all_networks(settings):
            import_for_inference()
        os.environ.update(settings.environment)
        device = settings.device
        if device == "cpu":
            # One thread a process, parallelism by processes: small batches lose by more threads.
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            raise JobFailed(
                f"Ray granted a GPU on {here()} and torch sees none there; install torch for "
                "CUDA, or set resources.gpus_per_annotation_actor=0"
            )
        self.recognizer = None
        try:
            self.annotators: list[Annotator] = [
                load_annotator(model, settings.annotator, device) for model in settings.models
            ]
            if settings.annotator.recognizer is not None:
                from emolake.pipeline.annotators.speech import SpeechRecognizer

                self.recognizer = SpeechRecognizer(settings.annotator.recognizer, device)
        except Exception as error:
            blame_device(error, starts=device == "cuda")
            raise
        for annotator, wanted in zip(self.annotators, settings.revisions, strict=False):
            if annotator.revision != wanted:
                raise JobFailed(
                    f"model {annotator.name} on {socket.gethostname()} is another one (revision "
                    f"{annotator.revision}) than the run was planned with ({wanted}); bring the nodes to one"
                )
        self.settings = settings
        self.needs = Needs.of_all(annotator.needs for annotator in self.annotators)
        self._failed_in_a_row = 0

    def __call__(self, segments: pa.Table) -> pa.Table:
        try:
            return self._annotate(segments)
        except DeviceFailed as failed:
            raise in_hand(
                failed, segments.select(["uri", "segment"]).to_pylist()
            ) from failed.__cause__

    def _annotate(self, segments: pa.Table) -> pa.Table:
        rows = [
            _Segment(row, windows.values, self.needs, self.settings)
            for row, windows in zip(
                segments.drop_columns(["windows"]).to_pylist(), segments["windows"], strict=True
            )
        ]
        if self.recognizer is not None and self.needs.transcript:
            for segment in rows:
                segment.recognize(self.recognizer)
        for annotator in self.annotators:
            started = time.monotonic()
            before = Counter(getattr(annotator, "usage", {}))
            told: dict[_Segment, list[Told]] = {segment: [] for segment in rows}
            for part in _at_once(
                window for segment in rows for window in segment.windows(annotator)
            ):
                annotations = _annotated(annotator, [window for _, _, window in part])
                for (segment, place, _), annotation in zip(part, annotations, strict=True):
                    told[segment].append((place, annotation))
            used: Mapping[str, int] = Counter(getattr(annotator, "usage", {})) - before
            a_window = (time.monotonic() - started) / max(sum(map(len, told.values())), 1)
            for segment, made in told.items():
                segment.tell(annotator, made, a_window * len(made), used)
                used = {}  # what a call took of an endpoint stands with its first row
        for segment in rows:
            self._count(segment)
        return pa.Table.from_pylist([segment.row() for segment in rows], ANNOTATED_ROW)

    def _count(self, segment: _Segment) -> None:
        """JobFailed where it is not the segments that are to blame: a broken actor fails faster than whole
        ones work, and would draw the archive to itself."""
        if segment.error is not None:
            self._failed_in_a_row += 1
        elif segment.seen:
            self._failed_in_a_row = 0
        if self._failed_in_a_row >= _MOST_FAILED_IN_A_ROW:
            raise JobFailed(
                f"the model failed on {self._failed_in_a_row} segments in a row on {socket.gethostname()}: "
                f"{in_a_line(segment.error, 200)}"
            )


_MADE_HERE = frozenset({"emo-llama", "llama-vid", "emola", "emotion-llama", "served"})


def _makes_all_networks(settings: AnnotationSettings) -> bool:
    """Whether every network is made of classes that we name. A folder that `transformers` reads by itself may
    ask for any part of it."""
    annotator = settings.annotator
    families = {read_config(model_path(model)).family for model in settings.models}
    asks_more = annotator.compile or annotator.quantize or annotator.names_folders
    return families <= _MADE_HERE and not asks_more


Place = dict[str, Any]
"""Where an annotation belongs: the values of its row that no model makes."""
Told = tuple[Place, Annotation | Exception]


class _Segment:
    """One row on its way through the annotators."""

    def __init__(
        self,
        row: dict[str, Any],
        windows: pa.StructArray,
        needs: Needs,
        settings: AnnotationSettings,
    ) -> None:
        self._face_windows = windows
        cues = row.pop("cues")
        self._transcribed = cues is not None
        self._cues = [Cue(**cue) for cue in cues or ()]
        sound = row.pop("sound")
        self._sound = sound and Sound(sound["start_s"], np.frombuffer(sound["samples"], "<i2"))
        self._row = row
        self._needs = needs
        self._speech_seconds = settings.speech_seconds
        self._abstain_below = settings.annotator.abstain_below
        self._attributes = {track["track_id"]: self._known(track) for track in row["tracks"]}
        for track in row["tracks"]:
            kept = self._attributes[track["track_id"]] if settings.store_attributes else {}
            track |= dict.fromkeys(ATTRIBUTES) | kept
        self._annotations: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.seen = False  # by a model
        self._seconds = 0.0
        self._spent: list[dict[str, Any]] = []

    def _known(self, track: Mapping[str, Any]) -> dict[str, str]:
        """What is known of a face: what the manifest says, else what was estimated."""
        told = {name: self._row[name] or track.get(name) for name in ATTRIBUTES}
        return {name: value for name, value in told.items() if value}

    def recognize(self, recognizer: Callable[[Sound], list[Cue]]) -> None:
        """What is said, heard, where nobody has written it down."""
        if self._transcribed or self._sound is None:
            return
        started = time.monotonic()
        try:
            self._cues = recognizer(self._sound)
        except Exception as error:
            blame_device(error)
            self.error = error
        self._seconds += time.monotonic() - started

    def windows(self, annotator: Annotator) -> Iterator[Placed]:
        if self._row["failed"]:
            return
        if not annotator.needs.faces:
            yield from (self._spoken(k, cue) for k, cue in enumerate(self._own_cues()))
            return
        for at in range(0, len(self._face_windows), _READ):
            yield from map(self._seen, self._face_windows.slice(at, _READ).to_pylist())

    def _own_cues(self) -> list[Cue]:
        """Those that begin here: a cue across a boundary belongs to one segment alone."""
        start_s, end_s = self._row["start_s"], self._row["end_s"]
        begun = [c for c in self._cues if max(c.start_s, 0.0) >= start_s and c.start_s < end_s]
        return spans_of(begun, self._speech_seconds) if self._speech_seconds else begun

    def _seen(self, window: dict[str, Any]) -> Placed:
        span = window["start_s"], window["end_s"]
        attributes = self._attributes.get(window["track_id"]) or self._known({})
        given = WindowInput.of(window, self._needs, attributes)
        sound = self._sound.span(*span) if self._sound else None
        given = replace(given, sound=sound, transcript=said_in(self._cues, *span))
        return self, {name: window[name] for name in _CARRIED}, given

    def _spoken(self, index: int, cue: Cue) -> Placed:
        place = {
            "track_id": VIDEO_ITSELF,
            "window": index,
            "start_s": max(cue.start_s, 0.0),
            "end_s": cue.end_s,
            "n_frames": 0,
            "n_interpolated": None,
            "bbox": {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0},
            "quality": None,
        }
        return self, place, WindowInput({}, np.zeros((0, 0), np.float32), transcript=cue.text)

    def tell(
        self,
        annotator: Annotator,
        made: list[Told],
        seconds: float,
        used: Mapping[str, int],
    ) -> None:
        self._seconds += seconds
        answered = sum(not isinstance(annotation, Exception) for _, annotation in made)
        spent = {"model": annotator.name, "windows": answered, "seconds": seconds}
        self._spent.append(spent | {name: used.get(name, 0) for name in ENDPOINT_USAGE})
        for place, annotation in made:
            self.seen = True
            if isinstance(annotation, Exception):
                self.error = self.error or annotation
                continue
            self._annotations.append(
                place
                | {name: getattr(annotation, name) for name in _TOLD}
                | {
                    "scores": list(annotation.scores.items()),
                    "uncertain": self._uncertain(annotation),
                    "model": annotator.name,
                    "model_revision": annotator.revision,
                }
            )

    def _uncertain(self, annotation: Annotation) -> bool | None:
        if self._abstain_below is None:
            return None
        return annotation.confidence < self._abstain_below

    def row(self) -> dict[str, Any]:
        """schema.ANNOTATED_ROW; failed where a model could not take one of its windows."""
        row = self._row
        if self.error is not None:
            told = f"{type(self.error).__name__}: {in_a_line(self.error, 300)}"
            row = failed_segment(row, "model_error", told) | {"tracks": []}
            self._annotations = []
        made = {"annotations": self._annotations, "spent": self._spent}
        return row | made | {"annotate_seconds": self._seconds}


Placed = tuple[_Segment, Place, WindowInput]


def _at_once(windows: Iterable[Placed]) -> Iterator[list[Placed]]:
    part, size = list[Placed](), 0
    for placed in windows:
        part.append(placed)
        size += placed[-1].nbytes
        if size >= _AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _annotated(annotator: Annotator, windows: list[WindowInput]) -> list[Annotation | Exception]:
    try:
        return list(annotator.annotate(windows))
    except JobFailed:
        raise
    except Exception as error:
        blame_device(error)
        # Once more one by one, so that a window the model cannot take costs its segment alone.
        return [_alone(annotator, window) for window in windows]


def _alone(annotator: Annotator, window: WindowInput) -> Annotation | Exception:
    try:
        return annotator.annotate([window])[0]
    except JobFailed:
        raise
    except Exception as error:
        blame_device(error)
        return error
