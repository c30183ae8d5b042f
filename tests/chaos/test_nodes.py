"""Nodes of a cluster join and leave in the middle of a run; it uses them, and ends well without them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray._private import state
from ray.cluster_utils import Cluster

from tests.chaos.harness import SETTINGS, Runs, assert_promise, keyed
from tests.conftest import ROOT, read_rows

MEMORY = 150 * 1024 * 1024
SLOW = ("--set", "decode.sample_fps=20", "--set", "faces.detect_every_seconds=0")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": MEMORY}
    )
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def wait(until: Callable[[], bool], so_long_as: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 300
    while not until() and so_long_as() and time.monotonic() < deadline:
        time.sleep(0.2)
    return until()


@pytest.mark.long
def test_a_lost_node_costs_no_row(
    segments: Path, undisturbed: Path, tmp_path: Path, cluster: Cluster
) -> None:
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=MEMORY) for _ in range(2)]
    cluster.wait_for_nodes()
    pools = ("--set", "resources.face_actors=3")
    runs = Runs(
        segments, tmp_path / "output", (*SETTINGS, *pools), {"RAY_ADDRESS": cluster.address}
    )
    process = runs.start()
    assert wait(lambda: runs.committed() >= 8, lambda: process.poll() is None)
    cluster.remove_node(nodes[0], allow_graceful=False)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert_promise(runs.output, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("told", [True, False], ids=["told to go", "killed"])
def test_a_node_that_joins_is_used_and_one_that_leaves_costs_no_row(
    segments: Path, undisturbed: Path, tmp_path: Path, cluster: Cluster, told: bool
) -> None:
    cluster.connect()
    runs = Runs(segments, tmp_path / "output", (*SETTINGS, *SLOW), {"RAY_ADDRESS": cluster.address})
    process = runs.start()
    assert wait(lambda: runs.committed() >= 3, lambda: process.poll() is None)
    node = cluster.add_node(num_cpus=3, object_store_memory=MEMORY)

    def used() -> bool:
        return any(
            actor["State"] == "ALIVE"
            and "FaceActor" in actor["ActorClassName"]
            and actor["Address"]["NodeID"] == node.node_id
            for actor in state.actors().values()
        )

    assert wait(used, lambda: process.poll() is None), "nobody had asked for it"
    cluster.remove_node(node, allow_graceful=told)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    ledgers = [
        sorted((Path(row["uri"]).name, row["segment"], row["state"]) for row in read_rows(path, "videos"))
        for path in (runs.output, undisturbed)
    ]  # fmt: skip
    assert ledgers[0] == ledgers[1]
    annotated = [{key[:2] for key in keyed(path)} for path in (runs.output, undisturbed)]
    assert annotated[0] == annotated[1]


DECLARED = Path(__file__).with_name("broken_device")
ONE_CALL = ("--set", "resources.face_actors=1")


@pytest.mark.long
@pytest.mark.parametrize("broken", [1, 2], ids=["one of two", "both"])
def test_a_broken_device_costs_its_node_and_no_row(
    segments: Path, undisturbed: Path, tmp_path: Path, cluster: Cluster, broken: int
) -> None:
    for k in range(2):
        env = {"PYTHONPATH": f"{DECLARED}:{ROOT}", "EMOLAKE_TEST_BREAKS": str(tmp_path / "breaks")}
        env |= {"EMOLAKE_TEST_BROKEN": "1"} if k < broken else {}
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=MEMORY, env_vars=env)
    cluster.wait_for_nodes()
    runs = Runs(
        segments, tmp_path / "output", (*SETTINGS, *ONE_CALL), {"RAY_ADDRESS": cluster.address}
    )
    process = runs.start(loud=True)
    _, error = process.communicate(timeout=600)
    assert error.count("its actors start anew") == 2 * broken, error
    if broken == 1:
        assert process.returncode == 0, error
        assert "the run goes on without this GPU" in error
        assert_promise(runs.output, undisturbed)
    else:
        assert process.returncode == 1, error
        assert "no GPU is left" in error.splitlines()[-1]
