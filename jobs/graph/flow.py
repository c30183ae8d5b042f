"""The main job as a Ray Data graph: the one place where the stages meet Ray.

videos -> segments -> faces (CPU actors) -> annotations (GPU actors) -> committed rows. One row in,
one row out from segments on, so a segment has exactly one outcome.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset, TaskPoolStrategy

from emolake.actors.annotation_actor import AnnotationActor, AnnotationSettings
from emolake.actors.face_actor import FaceActor, FaceSettings, SegmentPlanner
from emolake.jobs.graph.pools import TASK_CPUS, Pools
from emolake.jobs.setting import Setting
from emolake.pipeline.config import Config
from emolake.pipeline.corpus.planning import Plan, known_sizes
from emolake.pipeline.errors import JobFailed
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.lake.commit import RunStamp, commit_segments, first_model, segment_state
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import Fence, LeaseLost
from emolake.pipeline.lake.schema import COMMITTED_ROW
from emolake.pipeline.storage.chat import ENDPOINT_KEY
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.shards import Shards
from emolake.pipeline.storage.traffic import ours

_FACES_PER_TASK = 4
_VIDEOS_PER_BLOCK = 32
_MOST_SEGMENTS_PER_CALL = 16
_SHARE_OF_STORE = 8  # a call, the one that waits, and what the stages before have ready
_BYTES_TOGETHER = 2_000_000  # of small videos, that a face actor takes at a time
_LITTLE = 12_000  # bytes a second: a file of no more, for a segment's length, is hardly two
_MOST_SMALL = 8_000_000  # bytes
_CALLS_AN_ACTOR = 8  # at least, so that all come to an end at about one time
_FEW_CALLS = 512  # of which each has an object of its own, and a task of Ray's that looks at it


def annotated(
    plan: Plan, setting: Setting, pools: Pools, run: RunStamp, fence: Fence
) -> Iterator[dict[str, Any]]:
    """Runs the job; yields a row of schema.COMMITTED_ROW for each segment as it is committed.

    JobFailed where the output cannot be written any more, or belongs to another run by now.
    """
    config = setting.config
    settings = face_settings(
        config, setting.needs, setting.storage, network=any(map(_remote, plan.todo.parts()))
    )
    together = small_together(plan.todo, pools.faces.foreseen, config)
    if together and plan.todo.num_rows <= together * _FEW_CALLS and not settings.network:
        dataset = _by_face_actors(
            _videos(plan.todo, together), settings, pools, together, plans=True
        )
    else:
        videos = _videos(plan.todo, _videos_per_block(plan.todo.num_rows, pools.faces.foreseen))
        dataset = faces_found(videos, settings, pools, together or 1)
    dataset = annotations_made(
        dataset,
        config,
        pools,
        _segments_per_call(setting, pools),
        tuple(model.revision for model in setting.models),
    )
    dataset = dataset.map_batches(
        write_segments,  # type: ignore[arg-type]
        fn_kwargs={"lake": setting.lake, "run": run, "fence": fence},
        batch_size=config.resources.segments_per_commit,
        batch_format="pyarrow",
        compute=_tasks_beside(pools),
        num_cpus=TASK_CPUS,
    )
    for row in dataset.iter_rows():
        if row["problem"] is not None:
            raise JobFailed(row["problem"])
        yield row


def face_settings(config: Config, needs: Needs, storage: Storage, *, network: bool) -> FaceSettings:
    return FaceSettings(
        config.decode,
        config.faces,
        config.windows,
        config.limits,
        needs,
        "cuda" if config.resources.gpus_per_face_actor else "cpu",
        network,
        dict(storage.options),
    )


def faces_found(
    videos: Dataset, settings: FaceSettings, pools: Pools, segments_per_block: int = 1
) -> Dataset:
    """Rows of schema.VIDEO_ROW -> a row of schema.FACES_ROW for each of their segments."""
    tasks = _tasks_beside(pools)
    planned = videos.map_batches(
        plan_segments,  # type: ignore[arg-type]
        fn_kwargs={"settings": settings},
        batch_size=None,
        batch_format="pyarrow",
        compute=tasks,
        num_cpus=TASK_CPUS,
    )
    segments = _in_blocks_of(segments_per_block, planned, tasks)
    return _by_face_actors(segments, settings, pools, segments_per_block, plans=False)


def _by_face_actors(
    rows: Dataset, settings: FaceSettings, pools: Pools, at_a_time: int, *, plans: bool
) -> Dataset:
    """plans: rows are videos, whose headers the actors' children read as well: where all are small, few and
    local, that is done before a worker for it has started."""
    return rows.map_batches(
        FaceActor,
        fn_constructor_args=(settings,),
        fn_constructor_kwargs={"plans": plans},
        batch_size=at_a_time,
        batch_format="pyarrow",
        compute=pools.faces.strategy(),
        num_cpus=1,
        num_gpus=pools.face_gpus or None,
    )


def _in_blocks_of(rows: int, dataset: Dataset, tasks: TaskPoolStrategy) -> Dataset:
    """`repartition` asks for a whole CPU a task, which pools may have taken, and has no word for less. Asked
    for as little as the stage before, it becomes one with it."""
    cut = dataset.repartition(target_num_rows_per_block=rows)
    stage: Any = cut._logical_plan.dag
    stage.ray_remote_args["num_cpus"] = TASK_CPUS
    stage.compute.size = tasks.size
    return cut


def annotations_made(
    faces: Dataset,
    config: Config,
    pools: Pools,
    segments_per_call: int,
    revisions: tuple[str, ...] = (),
) -> Dataset:
    """Rows of schema.FACES_ROW -> of schema.ANNOTATED_ROW. revisions: what the models have to be, wherever
    they are loaded."""
    return faces.map_batches(
        AnnotationActor,
        fn_constructor_args=(
            AnnotationSettings(
                config.models,
                config.annotator,
                config.windows.speech_seconds,
                config.faces.store_attributes,
                "cuda" if pools.gpus else "cpu",
                revisions,
                {ENDPOINT_KEY: key} if (key := os.environ.get(ENDPOINT_KEY)) else {},
                own_process=True,
            ),
        ),
        batch_size=segments_per_call,
        batch_format="pyarrow",
        compute=pools.annotate.strategy(),
        num_cpus=pools.annotation_cpus,
        num_gpus=pools.gpus or None,
    )


def _tasks_beside(pools: Pools) -> TaskPoolStrategy:
    """So many tasks at a time. They are short, and each worker of theirs starts with seconds of imports:
    by the sliver of a CPU that they ask for, Ray would start tens, before the first face is looked for."""
    return TaskPoolStrategy(size=-(-pools.faces.foreseen // _FACES_PER_TASK))


def small_together(todo: Shards, actors: int, config: Config) -> int | None:
    """Segments of small videos that face actors take at a time: what Ray does for a call takes a tenth of a
    second of processor time, wherever it does it. A divisor of a commit's, so that commits are as large as
    asked for; None where some are of unknown size, or large: they may be several segments, which go one by
    one."""
    largest = min(_MOST_SMALL, config.decode.segment_seconds * _LITTLE)
    videos, size = 0, 0
    for part in todo.parts():
        sizes = known_sizes(part.filter(pc.is_null(part["missing"])))
        if not len(sizes):
            continue
        least, most = pc.min_max(sizes, skip_nulls=False).as_py().values()
        if least is None or most > largest:
            return None
        videos += len(sizes)
        size += pc.sum(sizes).as_py()
    commit = config.resources.segments_per_commit
    fair = videos // (actors * _CALLS_AN_ACTOR)
    wanted = max(1, min(fair, _BYTES_TOGETHER * videos // max(size, 1)))
    return max(n for n in range(1, commit + 1) if n <= wanted and commit % n == 0)


def _segments_per_call(setting: Setting, pools: Pools) -> int:
    asked = setting.config.resources.segments_per_call
    if asked is not None or not pools.gpus:
        return asked or 1
    nodes = sum(node["Alive"] for node in ray.nodes())
    store = ray.cluster_resources().get("object_store_memory", 0) / max(nodes, 1)
    return segments_that_fit(store / _SHARE_OF_STORE, setting.config, setting.needs)


def segments_that_fit(room: float, config: Config, needs: Needs) -> int:
    """How many segments with one face throughout take `room` bytes, 1 to 16."""
    windows = config.decode.segment_seconds / config.windows.window_seconds
    segment = windows * config.windows.frames_per_window * needs.bytes_per_frame()
    return max(1, min(_MOST_SEGMENTS_PER_CALL, int(room / max(segment, 1))))


def _remote(todo: pa.Table) -> bool:
    """Whether anything that will be opened lies beyond this machine's files."""
    uris = (todo["uri"], todo["transcript_uri"])
    return any(pc.any(pc.match_substring(column, "://")).as_py() for column in uris)


def _videos_per_block(videos: int, faces: int) -> int:
    blocks = max(1, min(2 * faces, videos), -(-videos // _VIDEOS_PER_BLOCK))
    return -(-videos // blocks)


def _videos(todo: Shards, size: int) -> Dataset:
    """In blocks that Ray's object store holds, and not this process."""
    refs = [
        ray.put(part.slice(at, size).combine_chunks())
        for part in todo.parts()
        for at in range(0, part.num_rows, size)
    ]
    return ray.data.from_arrow_refs(refs)  # type: ignore[arg-type]


_planner: SegmentPlanner | None = None
"""Of this worker: its child, which reads headers, serves one task after the other."""


def plan_segments(videos: pa.Table, settings: FaceSettings) -> pa.Table:
    global _planner
    if _planner is None or _planner.settings != settings:
        _planner = SegmentPlanner(settings)
    return _planner(videos)


def write_segments(segments: pa.Table, lake: Lake, run: RunStamp, fence: Fence) -> pa.Table:
    """The write task: commits whole segments, and tells the driver what it committed.

    A problem of the output is told as well, not raised: Ray would wrap it in pages of its own.
    """
    started, before = time.monotonic(), ours()
    rows = segments.to_pylist()
    problem = None
    try:
        commit_segments(lake, rows, run, fence)
    except LeaseLost as error:
        problem = str(error)
    except OSError as error:
        problem = lake.cannot_write(error)
    share = (time.monotonic() - started) / max(len(rows), 1)
    spent = ours().since(before)
    told = [
        {
            "video_id": row["video_id"],
            "segment": row["segment"],
            "n_segments": row["n_segments"],
            "size": row["size"],
            "state": segment_state(row),
            "reason": row["reason"],
            "attempt": row["attempt"],
            "n_tracks": len(row["tracks"]),
            "n_windows": len(first_model(row["annotations"])),
            "n_dropped_tracks": row["n_dropped_tracks"],
            "video_seconds": row["video_seconds"],
            "face_seconds": row["face_seconds"],
            "annotate_seconds": row["annotate_seconds"],
            "write_seconds": share,
            "spent": row["spent"],
            # The commit's own stand with its first segment.
            **{name: (value if k == 0 else 0) + row.get(name, 0) for name, value in spent.items()},
            "problem": problem,
        }
        for k, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(told, COMMITTED_ROW)
