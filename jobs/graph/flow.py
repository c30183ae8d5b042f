"""The main job as a Ray Data graph: the one place where the stages meet Ray.

videos -> segments -> faces (CPU actors) -> annotations (GPU actors) -> committed rows. One row in,
one row out from segments on, so a segment has exactly one outcome.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray._private import ray_constants
from ray._private import state as ray_state
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from emolake.actors.annotation_actor import AnnotationActor, AnnotationSettings
from emolake.actors.face_actor import FaceActor, FaceSettings, SegmentPlanner
from emolake.jobs.graph.nodes import check_nodes
from emolake.jobs.setting import Setting
from emolake.pipeline.config import Config, PoolSize, ResourcesConfig
from emolake.pipeline.corpus.planning import Plan
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.lake.commit import RunStamp, commit_segments, first_model, segment_state
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import Fence, LeaseLost
from emolake.pipeline.lake.schema import COMMITTED_ROW
from emolake.pipeline.storage.chat import ENDPOINT_KEY
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.shards import Shards
from emolake.pipeline.storage.traffic import ours

# Tasks between the actor pools ask for a sliver of a CPU: with a whole one each they starve beside
# pools that hold nearly all of a small machine.
TASK_CPUS = 0.1
_CPU_ANNOTATION_CPUS = 0.5
_SPARE_CPUS = 1  # for the tasks, which ask for slivers
_SHARE_AT_FIRST = (
    0.75  # of what face actors could take, where annotation on CPUs has to find its own share
)
_FACES_PER_TASK = 4
_OF_A_CLUSTER = 16  # at least, in the end, where nobody knows how far it grows
_VIDEOS_PER_BLOCK = 32
_MOST_SEGMENTS_PER_CALL = 16
_SHARE_OF_STORE = 8  # a call, the one that waits, and what the stages before have ready


def start_ray(resources: ResourcesConfig) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts a Ray on this machine without dashboard."""
    # Ray's core logs warnings about its own actors to standard error; failures reach us as errors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        check_nodes()
    else:
        faces = _fitted(resources.face_actors, _default_faces(_cores()))
        annotators = _CPU_ANNOTATION_CPUS * _fitted(resources.annotation_actors, 1)
        with _on_loopback(), _without_its_first_word():
            ray.init(
                address="local",  # and not whatever cluster happens to run on this machine
                num_cpus=faces + math.ceil(annotators + _SPARE_CPUS),
                object_store_memory=resources.object_store_mb * 1024 * 1024,
                include_dashboard=False,
                **quiet,
            )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _without_its_first_word() -> Iterator[None]:
    """Ray's core says on standard error which level of logging it was given, before it heeds it; whatever
    else is said there meanwhile comes when Ray is up, or is not."""
    sys.stderr.flush()
    ours = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(ours, 2)
            os.close(ours)
            said.seek(0)
            os.write(2, b"".join(line for line in said if b"Set ray log level from" not in line))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray started within listens on 127.0.0.1 alone, as it does by itself on Windows and macOS; for
    Linux its one switch is read when it is imported."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@dataclass(frozen=True)
class Pool:
    """Actors of a stage: `first` of them, and then between `least` and `most` (None: all that fit), as nodes
    come and go and as the stages' measured rates ask for."""

    first: int
    least: int
    most: int | None

    @classmethod
    def of(cls, size: PoolSize | None, fits: int, *, follows: bool) -> Pool:
        """Of the asked size, or, where none was asked for, as many as fit."""
        if size is None:
            return cls(fits, 1, None) if follows else cls(fits, fits, fits)
        return cls(_fitted(size, fits), size.min, size.max)

    @property
    def foreseen(self) -> int:
        """About how many they become."""
        return self.most or max(self.first, _OF_A_CLUSTER)

    def strategy(self) -> ActorPoolStrategy:
        return ActorPoolStrategy(
            min_size=self.least,
            max_size=self.most,
            initial_size=self.first,
            max_tasks_in_flight_per_actor=2,
        )


def _fitted(size: PoolSize | None, fits: int) -> int:
    """Actors that a pool has where so many fit."""
    return fits if size is None else max(size.min, min(fits, size.max or fits))


@dataclass(frozen=True)
class Pools:
    """Actors of each stage. gpus, face_gpus: those of one actor, maybe a fraction; annotation_cpus: of one
    annotation actor."""

    faces: Pool
    annotate: Pool
    gpus: float
    face_gpus: float = 0.0
    annotation_cpus: float = _CPU_ANNOTATION_CPUS

    def shortage(self, cpus: float, gpus: float) -> str | None:
        """The sum, where a cluster of so many CPUs and GPUs does not hold the pools: Ray would wait for more
        without a word."""
        for kind, has, of_face, of_annotation, tasks in (
            ("CPUs", cpus, 1.0, self.annotation_cpus, TASK_CPUS),
            ("GPUs", gpus, self.face_gpus, self.gpus, 0),
        ):
            terms = (
                (self.faces.least, "face actors", of_face),
                (self.annotate.least, "annotation actors", of_annotation),
                (1, "for tasks", tasks),
            )
            wants = sum(number * each for number, _, each in terms)
            if wants > has + 1e-6:
                told = " + ".join(f"{n} {what} x {each:g}" for n, what, each in terms if each)
                return f"the pools want {wants:g} {kind} ({told}), and this cluster has {has:g}"
        return None


def pool_sizes(
    resources: ResourcesConfig, say: Callable[[str], None] | None = None, *, on_device: bool = True
) -> Pools:
    """The pools for the Ray that is running. on_device: whether the annotation stage computes there; unless
    GPUs are asked for, it leaves them to others where it does not. What cannot be had yet is said; what never
    can is a UserError."""
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    joined = bool(os.environ.get("RAY_ADDRESS"))
    faces = int(cpus) if joined else _default_faces(_cores())
    pools = pools_for(resources, cpus, gpus, faces, follows=joined, on_device=on_device)
    if shortage := pools.shortage(cpus, gpus):
        if not (joined and _may_grow(cpus)):
            raise UserError(
                f"{shortage}; ask for fewer with resources.face_actors and resources.annotation_actors, or "
                'for what there is, from 1 to 8, by {"min": 1, "max": 8}'
            )
        if say is not None:
            say(f"{shortage}: the run waits until it grows")
    return pools


def _may_grow(cpus: float) -> bool:
    """Whether nodes may come by themselves. Ray does not tell; KubeRay and Ray's launcher leave a trace on
    the head, where a submitted job's driver runs, and a cluster without one CPU can only wait for some."""
    launched = Path("~/ray_bootstrap_config.yaml").expanduser()
    return not cpus or "RAY_CLUSTER_NAME" in os.environ or launched.exists()


class Held:
    """What a run's pools take, busy or not, from now on; `look` now and then."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._began = self._looked = time.monotonic()
        self._seconds = {"faces": 0.0, "annotate": 0.0}

    def look(self) -> None:
        now = time.monotonic()
        for name, pool, kind in (
            ("faces", self._pools.faces, FaceActor),
            ("annotate", self._pools.annotate, AnnotationActor),
        ):
            count = pool.first if pool.least == pool.most else _actors_of(kind)
            self._seconds[name] += (now - self._looked) * count
        self._looked = now

    @property
    def workers(self) -> dict[str, int]:
        """Actors of each pool, on average."""
        elapsed = max(self._looked - self._began, 1e-9)
        return {name: max(1, round(spent / elapsed)) for name, spent in self._seconds.items()}

    @property
    def cpu_seconds(self) -> float:
        """The driver and the tasks count as one CPU."""
        faces, annotate = self._seconds.values()
        return self._looked - self._began + faces + annotate * self._pools.annotation_cpus

    @property
    def gpu_seconds(self) -> float:
        faces, annotate = self._seconds.values()
        return faces * self._pools.face_gpus + annotate * self._pools.gpus


def _actors_of(kind: type) -> int:
    """Of this job, by Ray's own table: those that work, and those that load a model on a node of theirs."""
    job = ray.get_runtime_context().get_job_id()
    return sum(
        kind.__name__ in actor["ActorClassName"]
        and actor["JobID"] == job
        and actor["State"] in ("ALIVE", "PENDING_CREATION")
        and bool(actor["Pid"])
        for actor in ray_state.actors().values()
    )


def pools_for(
    resources: ResourcesConfig, cpus: float, gpus: float, faces: int, *,
    follows: bool = False, on_device: bool = True,
) -> Pools:  # fmt: skip
    """Pools that fit into so many CPUs and GPUs together with the tasks between them, as far as `resources`
    leaves that open; faces: so many at most. follows: whether those that it leaves open grow and shrink with
    the cluster."""
    each, face_gpus = resources.gpus_per_annotation_actor, resources.gpus_per_face_actor
    if each is None:
        each = 1.0 if on_device and gpus >= 1 else 0.0
    for_faces = face_gpus * _fitted(resources.face_actors, 1)
    fits = max(1, int((gpus - for_faces) / each + 1e-6)) if each else 1
    least = resources.face_actors.min if resources.face_actors else 1
    # A GPU's actor prepares batches on a core of its own, where the face stage can spare one.
    first = _fitted(resources.annotation_actors, fits)
    for annotation_cpus in (
        (1.0, _CPU_ANNOTATION_CPUS, TASK_CPUS) if each else (_CPU_ANNOTATION_CPUS,)
    ):
        if not cpus or cpus - _SPARE_CPUS - first * annotation_cpus >= least:
            break
    else:
        fits = max(1, min(fits, int((cpus - TASK_CPUS - least) / annotation_cpus + 1e-6)))
    annotate = Pool.of(resources.annotation_actors, fits, follows=follows)
    left = cpus - _SPARE_CPUS - annotate.first * annotation_cpus
    if not each and annotate.most != annotate.first:
        left *= _SHARE_AT_FIRST
    if face_gpus:
        faces = min(faces, int((gpus - annotate.first * each) / face_gpus + 1e-6))
    face = Pool.of(resources.face_actors, max(1, min(faces, int(left))), follows=follows)
    return Pools(face, annotate, each, face_gpus, annotation_cpus)


def _default_faces(cpus: int) -> int:
    """Face actors for so many CPUs: one is left to the annotation stage."""
    return max(1, cpus - 1)


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
    dataset = faces_found(_videos(plan.todo, pools.faces.foreseen), settings, pools)
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
    return _in_blocks_of(segments_per_block, planned, tasks).map_batches(
        FaceActor,
        fn_constructor_args=(settings,),
        batch_size=segments_per_block,
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


def _videos(todo: Shards, faces: int) -> Dataset:
    """In blocks that Ray's object store holds, and not this process."""
    blocks = max(1, min(2 * faces, todo.num_rows), -(-todo.num_rows // _VIDEOS_PER_BLOCK))
    size = -(-todo.num_rows // blocks)
    refs = [
        ray.put(part.slice(at, size).combine_chunks())
        for part in todo.parts()
        for at in range(0, part.num_rows, size)
    ]
    return ray.data.from_arrow_refs(refs)  # type: ignore[arg-type]


def plan_segments(videos: pa.Table, settings: FaceSettings) -> pa.Table:
    return SegmentPlanner(settings)(videos)


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


def _cores() -> int:
    """CPUs this process may use (a container's share, where affinity shows it)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
