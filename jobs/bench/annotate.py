"""The annotation stage."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from jobs.bench.measurement import Measurement, more_is_better, timed
from pipeline.errors import UserError


def bench_annotate(clips: list[Path], _scratch: Path, _options: Namespace) -> Iterator[Measurement]:
    """The annotation stage against the reference's way: one window a call, the answer generated."""
    import torch

    from pipeline.annotators.base import WindowInput
    from pipeline.annotators.emo_llama import EmoLlamaAnnotator
    from pipeline.config import AnnotatorConfig, DecodeConfig, FacesConfig, WindowsConfig
    from pipeline.decode import Ending, sampled_frames
    from pipeline.faces.stage import FaceStage
    from pipeline.models.catalog import DEFAULT_MODEL

    torch.set_num_threads(1)
    annotator = EmoLlamaAnnotator(DEFAULT_MODEL, AnnotatorConfig())
    decode = DecodeConfig()
    stage = FaceStage(FacesConfig(), WindowsConfig(), annotator.needs, decode.sample_fps)
    windows: list[WindowInput] = []
    for path in clips:
        found = stage(sampled_frames(str(path), decode, 0.0, math.inf, Ending()))
        windows += [WindowInput.of(row, annotator.needs, {}) for row in found.windows]
    if not windows:
        raise UserError("the clips show no face to annotate")
    windows = (windows * math.ceil(64 / len(windows)))[:64]
    annotator.annotate(windows[:16])
    spent = dict.fromkeys(("ours", "reference"), 0.0)
    with timed(spent, "ours"):
        annotator.annotate(windows)
    with timed(spent, "reference"):
        for window in windows:
            annotator.generate_answer(window, max_tokens=4)
    yield more_is_better(
        "label scoring in batches / one window a call",
        len(windows) / spent["ours"],
        len(windows) / spent["reference"],
        "windows/s",
        1.0,
    )
