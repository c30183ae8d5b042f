"""The Ray that a run starts for itself."""

import pkgutil
import subprocess
import sys

import pytest
from ray.data._internal import stats

from emolake.jobs.graph import start
from emolake.jobs.graph.labelled import running_ray
from emolake.pipeline.config import ResourcesConfig

_LISTENING = """
import psutil, ray
from emolake.jobs.graph.start import start_ray
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


_PROCESSES = """
import psutil, ray
from emolake.jobs.graph.start import start_ray
from emolake.pipeline.config import ResourcesConfig

start_ray(ResourcesConfig(face_actors=2))
rows = ray.data.range(4).map_batches(lambda rows: rows, concurrency=1, num_cpus=0.1).take_all()
assert len(rows) == 4
for process in psutil.Process().children(recursive=True):
    print(" ".join(process.cmdline()))
for actor in ray.util.list_named_actors(all_namespaces=True):
    print(actor)
"""


def test_no_process_is_started_for_clusters_and_dashboards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROCESSES], check=True, capture_output=True, text=True
    )
    assert "gcs_server" in done.stdout
    assert "ray::IDLE" in done.stdout or "default_worker.py" in done.stdout
    for of_clusters in ("dashboard.py", "log_monitor", "monitor.py", "Autoscaling", "StatsActor"):
        assert of_clusters not in done.stdout


def test_what_is_left_out_of_a_ray_is_there_again_for_the_next() -> None:
    theirs = stats._StatsManager.update_execution_metrics
    with running_ray(ResourcesConfig(face_actors=1)):
        assert stats._StatsManager.update_execution_metrics is not theirs
    assert stats._StatsManager.update_execution_metrics is theirs


def test_a_ray_with_other_names_keeps_what_it_has() -> None:
    for known in (start._OF_A_NODE, start._OF_DATA):
        before = [vars(pkgutil.resolve_name(place))[name] for place, name, _ in known]
        for other in ("ray.of_another_version", "ray.util:OfAnotherVersion"):
            with start._without((*known, (other, "this", lambda _: None))):
                within = [vars(pkgutil.resolve_name(place))[name] for place, name, _ in known]
            assert within == before
