"""A whole node of a cluster is lost in the middle of a run; the run goes on and ends well."""

import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.chaos.harness import SETTINGS, Runs, assert_promise


@pytest.mark.long
def test_a_lost_node_costs_no_row(segments: Path, undisturbed: Path, tmp_path: Path) -> None:
    memory = 150 * 1024 * 1024
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": memory}
    )
    try:
        nodes = [cluster.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
        cluster.wait_for_nodes()
        pools = ("--set", "resources.face_actors=3")
        runs = Runs(
            segments, tmp_path / "output", (*SETTINGS, *pools), {"RAY_ADDRESS": cluster.address}
        )
        process = runs.start()
        deadline = time.monotonic() + 300
        while runs.committed() < 8 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, "the run ended before a node could be lost"
        cluster.remove_node(nodes[0], allow_graceful=False)
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        assert_promise(runs.output, undisturbed)
    finally:
        cluster.shutdown()
