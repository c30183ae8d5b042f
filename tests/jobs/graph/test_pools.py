"""What a run holds of a cluster, and what is said where that is more than there is."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.data._internal.logical.optimizers import get_execution_plan

from emolake.jobs.graph import flow
from emolake.jobs.graph.flow import segments_that_fit
from emolake.jobs.graph.labelled import running_ray
from emolake.jobs.graph.pools import (
    TASK_CPUS,
    Held,
    Pool,
    Pools,
    cpus_wanted,
    pool_sizes,
    pools_for,
)
from emolake.pipeline.config import Config, DecodeConfig, ResourcesConfig
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, Needs
from emolake.pipeline.lake.schema import VIDEO_ROW
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.shards import Shards
from tests.conftest import Emolake, read_rows


def fixed(number: int) -> Pool:
    return Pool(number, number, number)


@pytest.mark.parametrize(
    ("cpus", "gpus", "faces", "annotate", "each_cpus"),
    [
        (1, 0, 1, 1, 0.5),
        (4, 0, 1, 1, 0.5),
        (16, 0, 10, 1, 0.5),
        (64, 0, 46, 1, 0.5),
        (4, 1, 2, 1, 1.0),
        (4, 3, 1, 3, 0.5),
        (8, 8, 3, 8, 0.5),
        (12, 8, 3, 8, 1.0),
        (96, 8, 87, 8, 1.0),
        (64, 8, 55, 8, 1.0),
        (6144, 512, 5631, 512, 1.0),
    ],
)
def test_pools_of_a_cluster_begin_with_what_fits_beside_the_tasks_and_follow_it(
    cpus: int, gpus: int, faces: int, annotate: int, each_cpus: float
) -> None:
    pools = pools_for(ResourcesConfig(), cpus, gpus, cpus, follows=True)
    assert (pools.faces, pools.annotate) == (Pool(faces, 1, None), Pool(annotate, 1, None))
    assert pools.annotation_cpus == each_cpus
    left = cpus - faces - annotate * each_cpus
    assert left >= 1 or cpus == 1, "tasks ask for slivers of it"
    if not gpus and cpus > 4:
        assert left > cpus / 5, "annotation on CPUs finds its share by its own rate"


def test_a_cluster_of_its_head_alone_is_asked_for_one_of_each_and_grows() -> None:
    pools = pools_for(ResourcesConfig(gpus_per_annotation_actor=1), 0, 0, 0, follows=True)
    assert (pools.faces, pools.annotate, pools.gpus) == (Pool(1, 1, None), Pool(1, 1, None), 1)
    assert pools.annotation_cpus == 1, "as on the nodes to come"


def test_pools_of_one_machine_keep_their_size() -> None:
    pools = pools_for(ResourcesConfig(), 9, 0, 7)
    assert (pools.faces, pools.annotate) == (fixed(7), fixed(1))


@pytest.mark.parametrize(
    ("cores", "rows", "faces", "annotate"),
    [
        (2, 1, fixed(1), fixed(1)),
        (1, 300, fixed(1), fixed(1)),
        (2, 300, fixed(2), fixed(1)),
        (16, 3, fixed(3), Pool(1, 1, 4)),
        (64, 1000, fixed(64), Pool(1, 1, 16)),
        (64, None, fixed(64), Pool(1, 1, 16)),
    ],
)
def test_one_machine_uses_all_its_cores_and_starts_no_more_than_there_is_work(
    monkeypatch, cores: int, rows: int | None, faces: Pool, annotate: Pool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("emolake.jobs.graph.pools._cores", lambda: cores)
    told = {"CPU": float(cpus_wanted(ResourcesConfig()))}
    monkeypatch.setattr("emolake.jobs.graph.pools.ray.cluster_resources", lambda: told)
    pools = pool_sizes(ResourcesConfig(), rows=rows, small=True)
    assert (pools.faces, pools.annotate) == (faces, annotate)
    for once in ({"small": False}, {"small": True, "on_device": False}):
        assert pool_sizes(ResourcesConfig(), rows=rows, **once).annotate == fixed(1)
    asked = ResourcesConfig(face_actors=5, annotation_actors=2)
    told = {"CPU": float(cpus_wanted(asked))}
    assert pool_sizes(asked, rows=rows).faces == fixed(5), "what is asked for stands"


@pytest.mark.parametrize(
    ("cores", "gpus", "faces"), [(4, 4, 3), (8, 8, 5), (16, 1, 16), (16, 8, 10)]
)
def test_gpus_of_one_machine_leave_half_its_cores_to_faces(
    monkeypatch, cores: int, gpus: int, faces: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("emolake.jobs.graph.pools._cores", lambda: cores)
    told = {"CPU": float(cpus_wanted(ResourcesConfig())), "GPU": float(gpus)}
    monkeypatch.setattr("emolake.jobs.graph.pools.ray.cluster_resources", lambda: told)
    pools = pool_sizes(ResourcesConfig())
    assert (pools.faces.most, pools.annotate) == (faces, fixed(gpus))


def test_what_is_asked_for_stands_and_the_rest_follows() -> None:
    half = ResourcesConfig(gpus_per_annotation_actor=0.5)
    assert pools_for(half, 32, 4, 32).annotate == fixed(8)
    assert pools_for(half, 32, 4, 32).faces == fixed(23)
    asked = ResourcesConfig(face_actors=7, annotation_actors=2)
    for follows in (False, True):
        pools = pools_for(asked, 10, 4, 10, follows=follows)
        assert (pools.faces, pools.annotate) == (fixed(7), fixed(2))


def test_faces_and_annotation_share_the_gpus() -> None:
    asked = ResourcesConfig(gpus_per_face_actor=0.25, gpus_per_annotation_actor=0.5)
    pools = pools_for(asked, 32, 2, 32, follows=True)
    assert (pools.annotate.first, pools.faces.first) == (3, 2)
    asked = ResourcesConfig(gpus_per_face_actor=0.25, face_actors=4)
    assert pools_for(asked, 32, 2, 32).annotate == fixed(1)


@pytest.mark.parametrize(("cpus", "first", "annotate"), [(2, 2, 1), (8, 5, 2), (32, 6, 2)])
def test_a_range_begins_with_what_fits_of_it(cpus: int, first: int, annotate: int) -> None:
    asked = ResourcesConfig(
        face_actors={"min": 2, "max": 6}, annotation_actors={"min": 1, "max": 4}
    )
    pools = pools_for(asked, cpus, 2, cpus, follows=True)
    assert (pools.faces, pools.annotate) == (Pool(first, 2, 6), Pool(annotate, 1, 4))


@pytest.mark.parametrize(
    ("asked", "cpus", "gpus", "told"),
    [
        ({"face_actors": 6}, 7, 0, None),
        ({"face_actors": 7}, 7, 0, "7.6 CPUs (7 face actors x 1 + 1 annotation actors x 0.5 + 1 for"),
        ({"face_actors": {"min": 7, "max": 99}}, 7, 0, "want 7.6 CPUs"),
        ({"face_actors": {"max": 99}}, 7, 0, None),
        ({"annotation_actors": 3}, 8, 2, "want 3 GPUs (3 annotation actors x 1)"),
        ({"annotation_actors": 3}, 8, 0, None),
        ({"gpus_per_face_actor": 0.25, "face_actors": 8}, 16, 2, "3 GPUs (8 face actors x 0.25 + 1 an"),
        ({"gpus_per_face_actor": 0.25, "face_actors": 4}, 16, 2, None),
        ({"face_actors": 64, "gpus_per_annotation_actor": 0.5}, 66, 8, None),
        ({"face_actors": 2, "gpus_per_annotation_actor": 0.25}, 4, 8, None),
        ({"face_actors": 3}, 4, 1, None),
        ({}, 1, 0, "want 1.6 CPUs"),
        ({}, 2, 0, None),
        ({}, 2, 1, None),
    ],
)  # fmt: skip
def test_pools_that_a_cluster_does_not_hold_are_told_with_the_sum(
    asked: dict, cpus: float, gpus: float, told: str | None
) -> None:
    pools = pools_for(ResourcesConfig(**asked), cpus, gpus, int(cpus), follows=True)
    shortage = pools.shortage(cpus, gpus)
    if told is None:
        assert shortage is None
    else:
        assert told in str(shortage)
        assert str(shortage).endswith(f"this cluster has {gpus if 'GPUs' in told else cpus:g}")


def test_a_cluster_that_may_grow_is_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("emolake.jobs.graph.pools.ray.cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    asked = ResourcesConfig(face_actors=60)
    with pytest.raises(UserError, match="this cluster has 4; ask for fewer"):
        pool_sizes(asked)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "as KubeRay says")
    said: list[str] = []
    assert pool_sizes(asked, said.append).faces == fixed(60)
    (line,) = said
    assert line.endswith("this cluster has 4: the run waits until it grows")


def test_one_machine_whose_gpu_cannot_hold_both_stages_is_told_so(monkeypatch) -> None:
    monkeypatch.setattr(
        "emolake.jobs.graph.pools.ray.cluster_resources", lambda: {"CPU": 32.0, "GPU": 1.0}
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"want 1.25 GPUs \(1 face actors x 0.25 \+ 1 annotation"):
        pool_sizes(ResourcesConfig(gpus_per_face_actor=0.25, face_actors=1))
    shared = ResourcesConfig(gpus_per_face_actor=0.25, gpus_per_annotation_actor=0.5)
    assert pool_sizes(shared).annotate == fixed(1)


def test_a_run_whose_models_are_elsewhere_leaves_the_gpus_to_others(monkeypatch) -> None:
    monkeypatch.setattr(
        "emolake.jobs.graph.pools.ray.cluster_resources", lambda: {"CPU": 32.0, "GPU": 8.0}
    )
    pools = pool_sizes(ResourcesConfig(), on_device=False)
    assert (pools.annotate.first, pools.gpus) == (1, 0.0)
    faces = ResourcesConfig(gpus_per_face_actor=0.25, face_actors={"max": 99})
    monkeypatch.setattr("emolake.jobs.graph.pools._cores", lambda: 31)
    assert pool_sizes(faces, on_device=False).faces.first == 30, "those are theirs"
    assert pool_sizes(ResourcesConfig()).annotate == fixed(8)


def test_a_call_takes_as_many_segments_as_memory_holds() -> None:
    # 150 windows of 8 crops of 224 x 224: about 90 MB a segment.
    large = Needs(crops=(CropView(CropSpec(224)),))
    assert segments_that_fit(50e6, Config(), large) == 1
    assert segments_that_fit(500e6, Config(), large) == 5
    assert segments_that_fit(50e9, Config(), large) == 16
    short = Config(decode=DecodeConfig(segment_seconds=30))
    assert segments_that_fit(50e6, short, large) == 5
    assert segments_that_fit(50e6, Config(), Needs(transcript=True)) == 16


def test_small_videos_go_together_as_long_as_all_actors_have_enough_to_do() -> None:
    def together(
        *sizes: int | None,
        actors: int = 2,
        missing: str | None = None,
        uri: str = "v",
        **resources: int,
    ) -> int | None:
        row = {"video_id": "v", "uri": uri, "corpus": "c", "attempt": 1}
        rows = [row | {"size": s, "missing": None if s else missing} for s in sizes]
        todo = Shards.of(VIDEO_ROW, [pa.Table.from_pylist(rows, VIDEO_ROW)])
        return flow.small_together(todo, actors, Config(resources=ResourcesConfig(**resources)))

    clip = 300_000
    assert together(*[clip] * 300) == 4
    assert together(*[clip] * 300, segments_per_commit=9) == 3, "commits are whole calls"
    assert together(*[clip] * 300, segments_per_commit=4) == 4
    assert together(*[clip] * 300, actors=16) == 2
    assert together(*[clip] * 10) == 1
    assert together(*[clip] * 9999, 3_000_000_000) is None, "calls would be full of its segments"
    assert together(*[clip] * 299, None) is None
    assert together(*[clip] * 300, 0) == 4
    assert together(*[clip] * 300, 0, uri="https://h/v") is None, "its server tells no length"
    assert together(*[clip] * 299, None, missing="not_found") == 4
    assert together() == 1
    seconds = Config(decode=DecodeConfig(segment_seconds=1))
    todo = Shards.of(VIDEO_ROW, [pa.Table.from_pylist([{"size": clip}] * 300, VIDEO_ROW)])
    assert flow.small_together(todo, 2, seconds) is None, "one video is many segments"


def test_one_child_reads_the_headers_of_all_that_a_worker_plans(demo_videos: Path) -> None:
    settings = flow.face_settings(Config(), Needs(), Storage(), network=False)
    children = set()
    for name in ("portrait", "no_face"):
        row = {
            "video_id": name,
            "uri": str(demo_videos / f"{name}.mp4"),
            "corpus": "c",
            "attempt": 1,
        }
        (segment,) = flow.plan_segments(
            pa.Table.from_pylist([row], VIDEO_ROW), settings
        ).to_pylist()
        assert segment["duration_s"] > 0
        assert flow._planner is not None
        children.add(flow._planner.decoder.pid)
    assert len(children) == 1
    other = replace(settings, network=True)
    flow.plan_segments(pa.Table.from_pylist([row], VIDEO_ROW), other)
    assert flow._planner.settings == other
    flow._planner.decoder.stop()


def test_what_a_run_holds_follows_its_pools(monkeypatch) -> None:
    clock, alive = [0.0], [0]
    monkeypatch.setattr("emolake.jobs.graph.pools.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("emolake.jobs.graph.pools._actors_of", lambda _: alive[0])
    held = Held(Pools(Pool(1, 1, None), fixed(2), gpus=1.0, annotation_cpus=0.5, gpus_aside=3))
    for clock[0], alive[0] in ((10.0, 4), (20.0, 8), (25.0, 0)):
        held.look()
    assert held.workers == {"faces": 5, "annotate": 2}
    assert held.cpu_seconds == 25 + 120 + 25
    assert held.gpu_seconds == 50 + 75


def test_no_stage_beside_the_pools_asks_for_a_whole_cpu() -> None:
    asked = ResourcesConfig(face_actors=1)
    with running_ray(asked):
        pools = pool_sizes(asked)
        settings = flow.face_settings(Config(), Needs(), Storage(), network=False)
        found = flow.faces_found(ray.data.from_arrow(pa.table({"uri": ["a"]})), settings, pools, 2)
        plan, _ = get_execution_plan(found._logical_plan)
        stages = plan.dag.post_order_iter()
        wants = {stage.name: getattr(stage, "_ray_remote_args", {}) for stage in stages}
    assert [of.get("num_cpus", 0) for of in wants.values()] == [0, TASK_CPUS, 1], wants
    assert list(wants)[1].startswith("MapBatches(plan_segments)->StreamingRepartition")


def test_three_gpus_on_four_cores_start_and_commit_or_say_why(
    demo_videos: Path, tmp_path: Path, emolake: Emolake
) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "num_gpus": 3, "object_store_memory": 150 * 1024 * 1024},
    )
    try:
        env = {"RAY_ADDRESS": cluster.address}
        gpus = emolake("annotate", demo_videos, "--output", tmp_path / "gpus", env=env)
        assert gpus.returncode == 1, gpus.stderr
        assert "torch sees none" in gpus.stderr.splitlines()[-1]
        on_cpus = (
            *("--set", "resources.gpus_per_annotation_actor=0"),
            *("--set", "resources.annotation_actors=3"),
        )
        done = emolake("annotate", demo_videos, "--output", tmp_path / "cpus", *on_cpus, env=env)
        assert done.returncode == 0, done.stderr
    finally:
        cluster.shutdown()
    assert read_rows(tmp_path / "cpus", "annotations")


def test_a_run_goes_on_with_the_gpus_that_are_left_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "there")
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    two = ResourcesConfig.model_validate({"annotation_actors": 2, "gpus_per_annotation_actor": 1})
    assert pool_sizes(two).annotate == fixed(2)
    assert pool_sizes(two, gpus_aside=1).annotate == fixed(1)
    with pytest.raises(JobFailed, match="this cluster has 0 that work; the same command resumes"):
        pool_sizes(two, gpus_aside=2)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(UserError, match="the pools want 2 GPUs"):
        pool_sizes(two)
