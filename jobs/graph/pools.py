"""How many actors each stage has: what fits a cluster beside the tasks between them, and follows it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray._private import state as ray_state

from emolake.pipeline.config import PoolSize, ResourcesConfig
from emolake.pipeline.errors import JobFailed, UserError

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy

# Tasks between the actor pools ask for a sliver of a CPU: with a whole one each they starve beside
# pools that hold nearly all of a small machine.
TASK_CPUS = 0.1
_CPU_ANNOTATION_CPUS = 0.5
_SPARE_CPUS = 1  # for the tasks, which ask for slivers
_SHARE_AT_FIRST = (
    0.75  # of what face actors could take, where annotation on CPUs has to find its own share
)
_FACES_PER_ANNOTATOR = 4
_OF_A_CLUSTER = 16  # at least, in the end, where nobody knows how far it grows


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
        # Takes a second to import, which `start_ray` does not wait for.
        from ray.data import ActorPoolStrategy

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
    annotation actor; gpus_aside: those that broke, and that nobody gets."""

    faces: Pool
    annotate: Pool
    gpus: float
    face_gpus: float = 0.0
    annotation_cpus: float = _CPU_ANNOTATION_CPUS
    gpus_aside: int = 0

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
    resources: ResourcesConfig, say: Callable[[str], None] | None = None, *,
    on_device: bool = True, rows: int | None = None, small: bool = False,
    gpus_aside: int | None = None,
) -> Pools:  # fmt: skip
    """The pools for the Ray that is running. on_device: whether the annotation stage computes there; unless
    GPUs are asked for, it leaves them to others where it does not; rows: about how many segments or blocks of
    pictures there are to do; one machine starts no more actors than that; small: whether a model may be
    there several times on one machine; gpus_aside: of a run that has begun, how many it leaves alone; it
    takes what fits. What cannot be had yet is said; what never can is a UserError, of a run that has begun
    JobFailed."""
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0) - (gpus_aside or 0)
    joined = bool(os.environ.get("RAY_ADDRESS"))
    faces = int(cpus) if joined else _cores()
    if gpus_aside is not None:
        resources = _within(resources, gpus)
    pools = pools_for(resources, cpus, gpus, faces, follows=joined, on_device=on_device)
    if not joined:
        pools = _of_one_machine(pools, resources, rows, small and on_device)
    if shortage := pools.shortage(cpus, gpus):
        if not (joined and _may_grow(cpus)):
            if gpus_aside is not None:
                raise JobFailed(f"{shortage} that work; the same command resumes")
            raise UserError(
                f"{shortage}; ask for fewer with resources.face_actors and resources.annotation_actors, or "
                'for what there is, from 1 to 8, by {"min": 1, "max": 8}'
            )
        if say is not None:
            say(f"{shortage}: the run waits until it grows")
    return replace(pools, gpus_aside=gpus_aside or 0)


def _within(resources: ResourcesConfig, gpus: float) -> ResourcesConfig:
    """The same, where a fixed number of annotation actors has lost GPUs."""
    asked, each = resources.annotation_actors, resources.gpus_per_annotation_actor or 1.0
    if asked is None:
        return resources
    for_faces = resources.gpus_per_face_actor * _fitted(resources.face_actors, 1)
    fits = max(1, int((gpus - for_faces) / each + 1e-6))
    most = min(asked.max or fits, fits)
    fewer = asked.model_copy(update={"min": min(asked.min, most), "max": most})
    return resources.model_copy(update={"annotation_actors": fewer})


def _of_one_machine(
    pools: Pools, resources: ResourcesConfig, rows: int | None, small: bool
) -> Pools:
    """Each stage's processes load for seconds: there are as many as have work for that, and annotation grows
    as its queue does."""
    faces, annotate = pools.faces, pools.annotate
    if resources.face_actors is None and rows is not None:
        first = max(1, min(faces.first, rows))
        faces = Pool(first, first, first)
    if resources.annotation_actors is None and small and not pools.gpus:
        annotate = Pool(1, 1, _annotators(_cores()))
    return replace(pools, faces=faces, annotate=annotate)


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
            ("faces", self._pools.faces, "FaceActor"),
            ("annotate", self._pools.annotate, "AnnotationActor"),
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
        aside = (self._looked - self._began) * self._pools.gpus_aside
        return faces * self._pools.face_gpus + annotate * self._pools.gpus + aside


def _actors_of(kind: str) -> int:
    """Of this job, by Ray's own table: those that work, and those that load a model on a node of theirs."""
    job = ray.get_runtime_context().get_job_id()
    return sum(
        kind in actor["ActorClassName"]
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
    # The CPUs of one machine's Ray are counted so that as many face actors fit as it has cores.
    left_to_faces = least if follows else max(least, faces // 2)
    # A GPU's actor prepares batches on a core of its own, where the face stage can spare one.
    first = _fitted(resources.annotation_actors, fits)
    for annotation_cpus in (
        (1.0, _CPU_ANNOTATION_CPUS, TASK_CPUS) if each else (_CPU_ANNOTATION_CPUS,)
    ):
        if not cpus or cpus - _SPARE_CPUS - first * annotation_cpus >= left_to_faces:
            break
    else:
        fits = max(1, min(fits, int((cpus - TASK_CPUS - least) / annotation_cpus + 1e-6)))
    annotate = Pool.of(resources.annotation_actors, fits, follows=follows)
    left = cpus - _SPARE_CPUS - annotate.first * annotation_cpus
    if follows and not each and annotate.most != annotate.first:
        left *= _SHARE_AT_FIRST
    if face_gpus:
        faces = min(faces, int((gpus - annotate.first * each) / face_gpus + 1e-6))
    face = Pool.of(resources.face_actors, max(1, min(faces, int(left))), follows=follows)
    return Pools(face, annotate, each, face_gpus, annotation_cpus)


def cpus_wanted(resources: ResourcesConfig) -> int:
    """What a Ray of one run on this machine is told to have."""
    faces = _fitted(resources.face_actors, _cores())
    annotators = _fitted(resources.annotation_actors, _annotators(_cores()))
    return faces + math.ceil(annotators * _CPU_ANNOTATION_CPUS + _SPARE_CPUS)


def _annotators(cores: int) -> int:
    """Annotation actors on the CPUs of one machine, at most: they take their cores from the face actors,
    whose work is several times that of a small model."""
    return max(1, cores // _FACES_PER_ANNOTATOR)


def _cores() -> int:
    """CPUs this process may use (a container's share, where affinity shows it)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
