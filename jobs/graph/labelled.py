"""Labelled tables through the stages of the main job, for `evaluate`, `instruct` and `tune`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from emolake.jobs.graph.flow import annotations_made, face_settings, faces_found
from emolake.jobs.graph.pools import TASK_CPUS, Pools, pool_sizes
from emolake.jobs.graph.start import start_ray, stop_ray
from emolake.pipeline.config import Config, ResourcesConfig, WindowsConfig
from emolake.pipeline.evaluation.labelled import LabelledTable, Part
from emolake.pipeline.faces.needs import Needs

_PICTURES_PER_BLOCK = 32
_BRIEF_S = 30.0
_BRIEF_PER_BLOCK = 8  # stretches, whose windows an actor holds together
_WHOLE_VIDEO_S = 86_400.0


@contextmanager
def running_ray(resources: ResourcesConfig) -> Iterator[None]:
    """The Ray that runs already, or else one for the time being."""
    if ray.is_initialized():
        yield
        return
    start_ray(resources)
    try:
        yield
    finally:
        stop_ray()


def annotated_table(
    table: LabelledTable,
    config: Config,
    needs: Needs,
    corruption: str | None = None,
    *,
    on_device: bool = True,
    revisions: tuple[str, ...] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The row's number and a row of schema.ANNOTATED_ROW, one for each segment of a video and one for a
    picture, in any order. Runs on the Ray of RAY_ADDRESS or one of its own. corruption: one of
    evaluation.corruptions by name, done to the pictures first; on_device: as `pool_sizes` takes it;
    revisions: as `annotations_made` does."""
    with running_ray(config.resources):
        pools = pool_sizes(config.resources, on_device=on_device, rows=_blocks(table))
        faces = _faces(table, config, needs, pools, corruption)
        made = annotations_made(faces, config, pools, _rows_per_block(table), revisions)
        yield from _by_row(
            made.select_columns(
                ["video_id", "annotations", "spent", "reason", "detail"], num_cpus=TASK_CPUS
            )
        )


def windows_of_table(
    table: LabelledTable, needs: Needs, frames: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with rows of schema.FACES_ROW: of a video one window a track and segment, of at most
    `frames` frames."""
    windows = WindowsConfig(window_seconds=_WHOLE_VIDEO_S, frames_per_window=frames)
    config = Config(windows=windows)
    with running_ray(config.resources):
        pools = pool_sizes(config.resources, rows=_blocks(table))
        faces = _faces(table, config, needs, pools)
        columns = ["video_id", "windows", "reason", "detail"]
        yield from _by_row(faces.select_columns(columns, num_cpus=TASK_CPUS))


def _faces(
    table: LabelledTable, config: Config, needs: Needs, pools: Pools, corruption: str | None = None
) -> Dataset:
    remote = "://" in table.uri or any("://" in uri for uri in table.column("uri") if uri)
    settings = replace(
        face_settings(config, needs, table.storage, network=remote), corruption=corruption
    )
    parts = ray.data.from_items([asdict(part) for part in table.parts])
    # What has been read once need not travel again: the tasks open the table by themselves.
    light = LabelledTable(table.uri, pa.table({}), table.columns, (), table.storage)
    videos = parts.map_batches(
        _read_part,  # type: ignore[arg-type]
        fn_kwargs={"table": light},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS,
    )
    return faces_found(videos, settings, pools, _rows_per_block(table))


def _blocks(table: LabelledTable) -> int:
    return -(-len(table) // _rows_per_block(table))


def _rows_per_block(table: LabelledTable) -> int:
    if not table.has_videos:
        return _PICTURES_PER_BLOCK
    spans = zip(table.column("start_s"), table.column("end_s"), strict=True)
    brief = all(end is not None and end - (start or 0.0) <= _BRIEF_S for start, end in spans)
    return _BRIEF_PER_BLOCK if brief else 1


def _read_part(parts: pa.Table, table: LabelledTable) -> Iterator[pa.Table]:
    for part in parts.to_pylist():
        yield from table.media(Part(**part))


def _by_row(dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in dataset.iter_rows():
        yield int(row.pop("video_id")), row
