"""A video in two segments is annotated like the same video in one, but for the seam."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from emolake.pipeline.annotators.base import Annotation, WindowInput, load_annotator
from emolake.pipeline.config import AnnotatorConfig, DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.faces.stage import FaceStage
from emolake.pipeline.models.catalog import DEFAULT_MODEL, model_path, read_config
from emolake.pipeline.video.decode import Ending, probe, sampled_frames, segment_spans


def annotated(path: Path, segment_seconds: float) -> list[tuple[dict[str, Any], Annotation]]:
    needs = read_config(model_path(DEFAULT_MODEL)).needs
    stage = FaceStage(FacesConfig(), WindowsConfig(), needs, 4.0)
    annotator = load_annotator(DEFAULT_MODEL, AnnotatorConfig(), "cpu")
    duration = probe(str(path)).duration_s
    out = []
    config = DecodeConfig(segment_seconds=segment_seconds)
    for start, end in segment_spans(duration, config):
        frames = sampled_frames(str(path), config, start, end, Ending())
        windows = stage(frames, start, end, duration or math.inf).windows
        told = annotator.annotate([WindowInput.of(window, needs, {}) for window in windows])
        out += list(zip(windows, told, strict=True))
    return out


@pytest.mark.parametrize("seam", [8.0, 9.25])
def test_only_windows_at_the_seam_differ(clips, seam: float) -> None:
    path = clips / "WolfgangLanger_Pexels.mp4"
    whole, split = annotated(path, 300.0), annotated(path, seam)
    assert sum(w["end_s"] - w["start_s"] for w, _ in split) == pytest.approx(
        sum(w["end_s"] - w["start_s"] for w, _ in whole), abs=1e-6
    )
    spans = sorted((w["start_s"], w["end_s"]) for w, _ in split)
    assert all(one[1] == pytest.approx(two[0]) for one, two in pairwise(spans))
    by_start = {w["start_s"]: (w, told) for w, told in split}
    seams = [seam, 2 * seam]
    compared = 0
    for window, told in whole:
        if any(window["start_s"] - 1 <= at <= window["end_s"] + 1 for at in seams):
            continue
        other, again = by_start[window["start_s"]]
        assert other["end_s"] == window["end_s"]
        assert again.scores == pytest.approx(told.scores, abs=1e-4)
        compared += 1
    assert compared >= 4
