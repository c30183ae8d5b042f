"""Crowds: what each process holds at its peak where so many faces show throughout a segment."""

from __future__ import annotations

import multiprocessing
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from emolake.jobs.bench.clips import loop_clip, written_clip
from emolake.jobs.bench.heads import Head, background, camera, heads_of
from emolake.jobs.bench.measurement import Measurement, less_is_better, peak_mb
from emolake.pipeline.config import Config, FacesConfig
from emolake.pipeline.video.frame import Frame

_COUNTS = (1, 20, 50)
_WIDE, _HIGH = 1280, 720
_CELL, _FACE = 80, 48  # pixels
_FILM_S, _RATE = 8, 8
_SEED = 7
_CONFIG = Config(faces=FacesConfig(detect_width=_WIDE))


def bench_crowd(_clips: list[Path], scratch: Path, options: Namespace) -> Iterator[Measurement]:
    heads = heads_of(options.faces, np.random.default_rng(_SEED))
    allowed = _CONFIG.limits.child_memory_mb
    for count in _COUNTS:
        clip, film, rows = (scratch / f"{count}{name}" for name in (".mp4", "-long.mp4", ".arrow"))
        written_clip(list(_crowd(heads, count)), clip, _RATE)
        loop_clip(clip, film, _CONFIG.decode.segment_seconds)
        # Each in a process of its own: a peak is one of its whole life.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            child, faces, windows = pool.apply(_faces_found, (film, rows))
            annotation = pool.apply(_annotated, (rows,))
        told = f"{count} faces, {windows} windows of {rows.stat().st_size / 1e6:.0f} MB"
        peaks = {"the child": child, "its face actor": faces, "the annotation actor": annotation}
        for process, peak in peaks.items():
            yield less_is_better(f"{told}: {process} / allowed a child", peak, allowed, "MB", 1)


def _crowd(heads: list[Head], count: int) -> Iterator[Frame]:
    """People who stand in rows and sway."""
    rng = np.random.default_rng(_SEED)
    scene, columns = background(rng, (_WIDE, _HIGH)), _WIDE // _CELL
    cells = rng.permutation(columns * (_HIGH // _CELL))[:count]
    for k in range(_FILM_S * _RATE):
        picture = scene.copy()
        for number, cell in enumerate(cells):
            sway = 5 * np.sin(2 * np.pi * k / (_FILM_S * _RATE) + number)
            x, y = cell % columns * _CELL + _CELL / 2 + sway, cell // columns * _CELL + _CELL / 2
            head = heads[number % len(heads)]
            head.paste(picture, head.pose(x, y, _FACE))
        yield camera(picture, rng)


def _faces_found(film: Path, rows: Path) -> tuple[float, float, int]:
    """Peaks of a child and of its face actor, MB, and the number of windows; the row goes to a file."""
    from emolake.actors.face_actor import FaceActor
    from emolake.jobs.graph.flow import face_settings
    from emolake.jobs.setting import ChosenModel, needs_of
    from emolake.pipeline.lake.schema import VIDEO_ROW
    from emolake.pipeline.storage.files import Storage

    needs = needs_of(tuple(ChosenModel.of(model) for model in _CONFIG.models), _CONFIG)
    actor = FaceActor(face_settings(_CONFIG, needs, Storage(), network=False), plans=True)
    told = {"video_id": "v", "uri": str(film), "corpus": "bench", "attempt": 1}
    video = dict.fromkeys(VIDEO_ROW.names) | told
    found = actor(pa.Table.from_pylist([video], VIDEO_ROW))
    child = actor.decoder.pid
    if child is None or found["failed"].to_pylist() != [False]:
        raise RuntimeError(f"the face stage failed: {found['detail'].to_pylist()}")
    with pa.OSFile(str(rows), "wb") as file, pa.ipc.new_file(file, found.schema) as writer:
        writer.write_table(found)
    return peak_mb(child), peak_mb(os.getpid()), len(found["windows"][0].values)


def _annotated(rows: Path) -> float:
    """Peak of an annotation actor, MB, with the row, which lies in memory that all share."""
    from emolake.actors.annotation_actor import AnnotationActor, AnnotationSettings

    actor = AnnotationActor(AnnotationSettings(_CONFIG.models, _CONFIG.annotator, own_process=True))
    with pa.memory_map(str(rows)) as file:
        actor(pa.ipc.open_file(file).read_all())
    return peak_mb(os.getpid())
