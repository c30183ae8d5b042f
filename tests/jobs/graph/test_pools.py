"""What a run holds of a cluster, and what is said where that is more than there is."""

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
