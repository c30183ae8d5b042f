"""The face stage by codec, and what `decode.fast` saves and costs."""

from __future__ import annotations

import math
import os
import time
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emolake.jobs.bench.faces import frames_of
from emolake.jobs.bench.measurement import Measurement, more_is_better
from emolake.pipeline.annotators.base import Annotator, WindowInput, load_annotator
from emolake.pipeline.config import AnnotatorConfig, DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.faces.detector import pairwise_iou
from emolake.pipeline.faces.stage import FaceStage, SegmentFaces

_HEIGHT, _RATE = 720, 30
_ROUNDS = 3
_SAME_BOX_IOU = 0.4
_CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "H.264": ("libx264", "yuv420p", {"preset": "veryfast"}),
    "HEVC": ("libx265", "yuv420p", {"preset": "veryfast", "x265-params": "log-level=none"}),
    "VP9": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "b": "4M"}),
    "AV1": ("libsvtav1", "yuv420p", {"preset": "12"}),
    "MPEG-2": ("mpeg2video", "yuv420p", {"b": "12M", "maxrate": "15M", "bufsize": "6M"}),
    "ProRes": ("prores_ks", "yuv422p10le", {}),
}


def bench_codecs(clips: list[Path], scratch: Path, _: Namespace) -> Iterator[Measurement]:
    torch.set_num_threads(1)
    os.environ.setdefault("SVT_LOG", "1")  # errors, and no page for each file
    annotator = load_annotator("emo-llama-tiny", AnnotatorConfig(), "cpu")
    whole, fast = DecodeConfig(), DecodeConfig(fast=True)
    stage = FaceStage(FacesConfig(), WindowsConfig(), annotator.needs, whole.sample_fps)
    for codec, how in _CODECS.items():
        paths = [scratch / f"{k}.{codec}.mkv" for k in range(len(clips))]
        for clip, path in zip(clips, paths, strict=True):
            with ThreadPoolExecutor(1) as own:  # SVT-AV1, run by root, makes its thread real-time
                own.submit(_encode, clip, path, *how).result()
        found = [stage(frames_of(path)) for path in paths]
        seconds = sum(some.seen_s for some in found)
        spent = _least_seconds(
            paths,
            {
                "stage": lambda path: stage(frames_of(path)),
                "decoded": lambda path: deque(frames_of(path), 0),
                "fast": lambda path: deque(frames_of(path, fast), 0),
            },
        )
        rate = {name: seconds / least for name, least in spent.items()}
        yield more_is_better(
            f"{codec}, {_HEIGHT}p: stage / decoding what is sampled",
            rate["stage"], rate["decoded"], "video-s/s", 0.7,
        )  # fmt: skip
        if not any(map(_differs, paths)):
            continue  # it has no such filter, or its decoder does not leave it out
        yield more_is_better(
            f"{codec}: decode.fast / decoding as encoded",
            rate["fast"], rate["decoded"], "video-s/s", 1,
        )  # fmt: skip
        overlaps, labels = list[float](), list[bool]()
        for path, some in zip(paths, found, strict=True):
            other = stage(frames_of(path, fast))
            overlaps += _overlaps(some.tracks, other.tracks)
            labels += _same_labels(annotator, some, other)
        iou = float(np.mean(overlaps)) if overlaps else 1.0
        yield more_is_better(f"{codec}: boxes with decode.fast, mean IoU / 1", iou, 1, "IoU", 0.95)
        if labels:
            yield more_is_better(
                f"{codec}: windows whose label decode.fast leaves / all",
                sum(labels), len(labels), "windows", 0.98,
            )  # fmt: skip


def _least_seconds(
    paths: list[Path], works: dict[str, Callable[[Path], object]]
) -> dict[str, float]:
    """Processor time of each on all paths, the least of some rounds in which they take turns."""
    spent = dict.fromkeys(works, math.inf)
    for _ in range(_ROUNDS):
        for name, work in works.items():
            started = time.process_time()
            for path in paths:
                work(path)
            spent[name] = min(spent[name], time.process_time() - started)
    return spent


def _differs(path: Path) -> bool:
    """Whether any picture does, decoded both ways."""
    ways = (frames_of(path, DecodeConfig(fast=fast)) for fast in (False, True))
    return any(not np.array_equal(a.rgb(), b.rgb()) for a, b in zip(*ways, strict=True))


def _same_labels(annotator: Annotator, found: SegmentFaces, other: SegmentFaces) -> list[bool]:
    """Of each window, whether that of the same time and place has its label."""
    told, again = (
        [
            (window["start_s"], _corners(window["bbox"]), getattr(annotation, "emotion", None))
            for window, annotation in zip(
                some.windows,
                annotator.annotate(
                    [WindowInput.of(window, annotator.needs, {}) for window in some.windows]
                ),
                strict=True,
            )
        ]
        for some in (found, other)
    )
    return [
        any(
            (at, label) == (then, same) and _iou(box, place) > _SAME_BOX_IOU
            for then, place, same in again
        )
        for at, box, label in told
    ]


def _corners(box: Mapping[str, float]) -> NDArray[np.float32]:
    return np.array([[box[side] for side in ("x1", "y1", "x2", "y2")]], np.float32)


def _iou(box: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(pairwise_iou(box, other)[0, 0])


def _overlaps(tracks: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """Of each box of all tracks, with the best of the others at its time; 0 where there is none."""
    there = defaultdict[float, list[NDArray[np.float32]]](list)
    for track in others:
        for place in track["path"]:
            there[place["time_s"]].append(_corners(place))
    return [
        max((_iou(_corners(place), box) for box in there[place["time_s"]]), default=0.0)
        for track in tracks
        for place in track["path"]
    ]


def _encode(clip: Path, target: Path, codec: str, pix_fmt: str, options: dict[str, str]) -> None:
    """The clip at 30 frames a second, each shown once."""
    import av

    with av.open(str(clip)) as source, av.open(str(target), "w") as out:
        video = source.streams.video[0]
        width = round(video.width * _HEIGHT / video.height / 2) * 2
        stream: Any = out.add_stream(codec, rate=_RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, _HEIGHT, pix_fmt
        for k, frame in enumerate(source.decode(video)):
            scaled = frame.reformat(width, _HEIGHT, format=pix_fmt)
            scaled.pts, scaled.time_base, scaled.pict_type = k, Fraction(1, _RATE), 0
            out.mux(stream.encode(scaled))
        out.mux(stream.encode())
