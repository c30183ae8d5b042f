"""What a run holds of a cluster, and what is said where that is more than there is."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.data._internal.logical.optimizers import get_execution_plan

from emolake.jobs.graph import flow
from emolake.jobs.graph.flow import TASK_CPUS, Held, Pool, Pools, pools_for, segments_that_fit
from emolake.jobs.graph.labelled import running_ray
from emolake.pipeline.config import Config, DecodeConfig, ResourcesConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, Needs
from emolake.pipeline.storage.files import Storage
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
    monkeypatch.setattr(flow.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    asked = ResourcesConfig(face_actors=60)
    with pytest.raises(UserError, match="this cluster has 4; ask for fewer"):
        flow.pool_sizes(asked)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "as KubeRay says")
    said: list[str] = []
    assert flow.pool_sizes(asked, said.append).faces == fixed(60)
    (line,) = said
    assert line.endswith("this cluster has 4: the run waits until it grows")


def test_one_machine_whose_gpu_cannot_hold_both_stages_is_told_so(monkeypatch) -> None:
    monkeypatch.setattr(flow.ray, "cluster_resources", lambda: {"CPU": 32.0, "GPU": 1.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"want 1.25 GPUs \(1 face actors x 0.25 \+ 1 annotation"):
        flow.pool_sizes(ResourcesConfig(gpus_per_face_actor=0.25, face_actors=1))
    shared = ResourcesConfig(gpus_per_face_actor=0.25, gpus_per_annotation_actor=0.5)
    assert flow.pool_sizes(shared).annotate == fixed(1)


def test_a_run_whose_models_are_elsewhere_leaves_the_gpus_to_others(monkeypatch) -> None:
    monkeypatch.setattr(flow.ray, "cluster_resources", lambda: {"CPU": 32.0, "GPU": 8.0})
    pools = flow.pool_sizes(ResourcesConfig(), on_device=False)
    assert (pools.annotate, pools.gpus) == (fixed(1), 0.0)
    faces = ResourcesConfig(gpus_per_face_actor=0.25, face_actors={"max": 99})
    monkeypatch.setattr(flow, "_default_faces", lambda _: 31)
    assert flow.pool_sizes(faces, on_device=False).faces.first == 30, "those are theirs"
    assert flow.pool_sizes(ResourcesConfig()).annotate == fixed(8)


def test_a_call_takes_as_many_segments_as_memory_holds() -> None:
    # 150 windows of 8 crops of 224 x 224: about 90 MB a segment.
    large = Needs(crops=(CropView(CropSpec(224)),))
    assert segments_that_fit(50e6, Config(), large) == 1
    assert segments_that_fit(500e6, Config(), large) == 5
    assert segments_that_fit(50e9, Config(), large) == 16
    short = Config(decode=DecodeConfig(segment_seconds=30))
    assert segments_that_fit(50e6, short, large) == 5
    assert segments_that_fit(50e6, Config(), Needs(transcript=True)) == 16


def test_what_a_run_holds_follows_its_pools(monkeypatch) -> None:
    clock, alive = [0.0], [0]
    monkeypatch.setattr(flow.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(flow, "_actors_of", lambda _: alive[0])
    held = Held(Pools(Pool(1, 1, None), fixed(2), gpus=1.0, annotation_cpus=0.5))
    for clock[0], alive[0] in ((10.0, 4), (20.0, 8), (25.0, 0)):
        held.look()
    assert held.workers == {"faces": 5, "annotate": 2}
    assert held.cpu_seconds == 25 + 120 + 25
    assert held.gpu_seconds == 50


def test_no_stage_beside_the_pools_asks_for_a_whole_cpu() -> None:
    asked = ResourcesConfig(face_actors=1)
    with running_ray(asked):
        pools = flow.pool_sizes(asked)
        settings = flow.face_settings(Config(), Needs(), Storage(), network=False)
        found = flow.faces_found(ray.data.from_arrow(pa.table({"uri": ["a"]})), settings, pools, 2)
        plan, _ = get_execution_plan(found._logical_plan)
        stages = plan.dag.post_order_iter()
        wants = {stage.name: getattr(stage, "_ray_remote_args", {}) for stage in stages}
    assert [of.get("num_cpus", 0) for of in wants.values()] == [0, TASK_CPUS, 1], wants
    assert list(wants)[1].startswith("MapBatches(plan_segments)->StreamingRepartition")


_LISTENING = """
import psutil, ray
from emolake.jobs.graph.flow import start_ray
from emolake.pipeline.config import ResourcesConfig

@ray.remote
def work() -> None:
    pass

start_ray(ResourcesConfig(face_actors=1))
ray.get(work.remote())
me = psutil.Process()
for process in [me, *me.children(recursive=True)]:
    for socket in process.net_connections("inet"):
        if socket.status == psutil.CONN_LISTEN:
            print(process.name(), socket.laddr.ip)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray keeps to loopback by itself")
def test_a_ray_of_its_own_listens_on_loopback_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LISTENING], check=True, capture_output=True, text=True
    )
    listening = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert any("raylet" in name for name, _ in listening)
    assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}


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
