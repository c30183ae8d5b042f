"""When a node is put aside, and when a run ends for want of another."""

from collections.abc import Iterator
from itertools import count

import pytest
import ray

from emolake.jobs.graph import aside
from emolake.jobs.graph.aside import Aside
from emolake.pipeline.errors import JobFailed

RAY_SAYS = """ray.exceptions.RayTaskError(UserCodeException): ray::MapBatches(AnnotationActor)()
emolake.pipeline.errors.DeviceFailed: the device of host-{0} (node {0}) failed: CUDA error: misaligned address

During handling of the above exception, another exception occurred:
"""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    nodes = {"a1": 2.0, "b2": 1.0}
    monkeypatch.setattr(aside, "_gpus", lambda: nodes)
    return nodes


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Between any two looks at the clock."""
    clock = count(step=3700)
    monkeypatch.setattr(aside.time, "monotonic", lambda: float(next(clock)))
    yield
    monkeypatch.undo()


def test_the_third_failure_in_a_row_puts_a_node_aside(gpus: dict[str, float]) -> None:
    broken = Aside()
    for node in ("a1", "b2", "a1"):
        told = str(broken.broke(RAY_SAYS.format(node)))
        assert told.startswith(f"the device of host-{node} (node {node}) failed: CUDA error: mis")
        assert told.endswith("; its actors start anew")
    assert broken.gpus == 0
    assert "3 times in a row, the run goes on without this node's GPUs" in str(
        broken.broke(RAY_SAYS.format("a1"))
    )
    assert broken.gpus == 2
    del gpus["a1"]  # it has left the cluster
    assert broken.gpus == 0


def test_a_run_without_a_node_left_ends_and_says_how_it_goes_on(gpus: dict[str, float]) -> None:
    broken = Aside()
    for _ in range(3):
        broken.broke(RAY_SAYS.format("a1"))
    for _ in range(2):
        broken.broke(RAY_SAYS.format("b2"))
    with pytest.raises(JobFailed, match=r"host-b2 .* no GPU is left: .* the same command resumes"):
        broken.broke(RAY_SAYS.format("b2"))


def test_one_gpu_of_several_goes_alone_and_a_second_takes_its_node_along(
    gpus: dict[str, float],
) -> None:
    def says(gpu: int) -> str:
        return RAY_SAYS.format("a1").replace("(node a1)", f"(node a1, GPU {gpu})")

    gpus["a1"] = 8.0
    broken = Aside()
    for tries in range(3):
        told = str(broken.broke(says(5)))
        assert ("goes on without this GPU" in told) == (tries == 2)
    assert broken.gpus == 1
    with pytest.raises(JobFailed, match="though it was left out"):
        broken.broke(says(5))
    for tries in range(3):
        told = str(broken.broke(says(2)))
        assert ("goes on without this node's GPUs" in told) == (tries == 2)
    assert broken.gpus == 8


@pytest.mark.usefixtures("gpus")
def test_of_a_node_whose_gpus_break_in_turn_all_go() -> None:
    broken = Aside()
    for gpu in (0, 1, 0, 1, 2, 2):
        told = str(
            broken.broke(RAY_SAYS.format("a1").replace("(node a1)", f"(node a1, GPU {gpu})"))
        )
    assert "; as others there, the run goes on without this node's GPUs" in told
    assert broken.gpus == 2


def test_the_gpu_that_broke_is_taken_and_no_other() -> None:
    ray.init(num_cpus=1, num_gpus=3, include_dashboard=False)
    try:
        node = ray.get_runtime_context().get_node_id()
        broken = Aside()
        for _ in range(3):
            broken.broke(RAY_SAYS.format(node).replace(f"(node {node})", f"(node {node}, GPU 1)"))
        broken.take()
        (keeper,) = broken._keepers[node]
        assert ray.get(keeper.has.remote()) == "1"
        others = [ray.remote(num_cpus=0, num_gpus=1)(_which).remote() for _ in range(2)]
        assert set(ray.get(others, timeout=60)) <= {"0", "2"}
        broken.take()
        assert broken._keepers[node] == [keeper]
    finally:
        ray.shutdown()


def _which() -> str:
    return str(ray.get_gpu_ids()[0])


@pytest.mark.usefixtures("gpus", "hours")
def test_failures_far_apart_are_none_in_a_row() -> None:
    broken = Aside()
    for _ in range(9):
        assert "start anew" in str(broken.broke(RAY_SAYS.format("a1")))


@pytest.mark.usefixtures("gpus")
def test_failures_within_an_hour_of_the_last_are_in_a_row(monkeypatch) -> None:
    clock = count(step=3000)
    monkeypatch.setattr(aside.time, "monotonic", lambda: float(next(clock)))
    broken = Aside()
    told = [str(broken.broke(RAY_SAYS.format("a1"))) for _ in range(3)]
    monkeypatch.undo()
    assert "3 times in a row" in told[-1]


@pytest.mark.usefixtures("gpus")
def test_other_errors_are_not_a_devices() -> None:
    assert Aside().broke("emolake.pipeline.errors.JobFailed: model x is another one") is None


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_gone_has_broken_where_it_worked_before() -> None:
    gone = "errors.JobFailed: Ray granted a GPU on host-a1 (node a1) and torch sees none there; install"
    broken = Aside()
    assert broken.broke(gone) is None
    broken.broke(RAY_SAYS.format("a1"))
    assert "torch sees none there; its actors start anew" in str(broken.broke(gone))


@pytest.mark.usefixtures("gpus")
def test_a_node_that_is_aside_does_not_break_for_ever() -> None:
    broken = Aside()
    for _ in range(3):
        broken.broke(RAY_SAYS.format("a1"))
    with pytest.raises(JobFailed, match="though it was left out"):
        broken.broke(RAY_SAYS.format("a1"))
