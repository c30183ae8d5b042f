"""What a run holds of a cluster, and what is said where that is more than there is."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from emolake.jobs.graph import flow
from emolake.jobs.graph.flow import Pools, pools_for, segments_that_fit
from emolake.pipeline.config import Config, DecodeConfig, ResourcesConfig
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, Needs
from tests.conftest import Emolake, read_rows


def test_a_run_holds_its_pools_and_one_cpu_for_the_rest() -> None:
    on_cpus = Pools(faces=6, annotate=2, gpus=0.0)
    assert (on_cpus.held_cpus, on_cpus.held_gpus) == (8.0, 0.0)
    on_gpus = Pools(faces=6, annotate=2, gpus=0.5, face_gpus=0.1, annotation_cpus=1)
    assert (on_gpus.held_cpus, on_gpus.held_gpus) == (9.0, pytest.approx(1.6))


def test_a_run_that_would_wait_for_cpus_says_so() -> None:
    pools = Pools(faces=6, annotate=2, gpus=0.0)
    assert pools.shortage(8.0) is None
    told = pools.shortage(7.0)
    assert told is not None
    assert "wants 8 CPUs and the cluster has 7" in told
    assert "resources.face_actors" in told


@pytest.mark.parametrize(
    ("cpus", "gpus", "faces", "annotate", "each_cpus"),
    [
        (4, 0, 1, 1, 0.5),
        (16, 0, 13, 1, 0.5),
        (4, 1, 1, 1, 1.0),
        (4, 3, 1, 3, 0.1),
        (8, 8, 2, 8, 0.5),
        (12, 8, 2, 8, 1.0),
        (96, 8, 86, 8, 1.0),
        (64, 8, 54, 8, 1.0),
        (6144, 512, 5630, 512, 1.0),
    ],
)
def test_default_pools_leave_room_for_the_tasks_between_them(
    cpus: int, gpus: int, faces: int, annotate: int, each_cpus: float
) -> None:
    pools = pools_for(ResourcesConfig(), cpus, gpus, cpus)
    assert (pools.faces, pools.annotate, pools.annotation_cpus) == (faces, annotate, each_cpus)
    assert pools.held_cpus <= cpus
    assert pools.shortage(cpus) is None


def test_what_is_asked_for_stands_and_the_rest_follows() -> None:
    half = ResourcesConfig(gpus_per_annotation_actor=0.5)
    assert pools_for(half, 32, 4, 32).annotate == 8
    assert pools_for(half, 32, 4, 32).faces == 22
    asked = ResourcesConfig(face_actors=7, annotation_actors=2)
    assert (pools_for(asked, 10, 4, 10).faces, pools_for(asked, 10, 4, 10).annotate) == (7, 2)


def test_a_run_whose_models_are_elsewhere_leaves_the_gpus_to_others(monkeypatch) -> None:
    monkeypatch.setattr(flow.ray, "cluster_resources", lambda: {"CPU": 32.0, "GPU": 8.0})
    pools = flow.pool_sizes(ResourcesConfig(), on_device=False)
    assert (pools.annotate, pools.gpus, pools.held_gpus) == (1, 0.0, 0.0)
    assert flow.pool_sizes(ResourcesConfig()).held_gpus == 8


def test_a_call_takes_as_many_segments_as_memory_holds() -> None:
    # 150 windows of 8 crops of 224 x 224: about 90 MB a segment.
    large = Needs(crops=(CropView(CropSpec(224)),))
    assert segments_that_fit(50e6, Config(), large) == 1
    assert segments_that_fit(500e6, Config(), large) == 5
    assert segments_that_fit(50e9, Config(), large) == 16
    short = Config(decode=DecodeConfig(segment_seconds=30))
    assert segments_that_fit(50e6, short, large) == 5
    assert segments_that_fit(50e6, Config(), Needs(transcript=True)) == 16


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
