"""What a run holds of a cluster, and what is said where that is more than there is."""

import subprocess
import sys

import pytest

from emolake.jobs.graph.flow import Pools, segments_that_fit
from emolake.pipeline.config import Config, DecodeConfig
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, Needs


def test_a_run_holds_its_pools_and_one_cpu_for_the_rest() -> None:
    on_cpus = Pools(faces=6, annotate=2, gpus=0.0)
    assert (on_cpus.held_cpus, on_cpus.held_gpus) == (8.0, 0.0)
    on_gpus = Pools(faces=6, annotate=2, gpus=0.5, face_gpus=0.1)
    assert (on_gpus.held_cpus, on_gpus.held_gpus) == (9.0, pytest.approx(1.6))


def test_a_run_that_would_wait_for_cpus_says_so() -> None:
    pools = Pools(faces=6, annotate=2, gpus=0.0)
    assert pools.shortage(8.0) is None
    told = pools.shortage(7.0)
    assert told is not None
    assert "wants 8 CPUs and the cluster has 7" in told
    assert "resources.face_actors" in told


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
