"""The face stage: its speed against the decoder and a plain loop, its memory, and its tracks."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emolake.actors.face_actor import FaceActor, FaceSettings, SegmentPlanner
from emolake.jobs.bench.clips import loop_clip, resized_clip
from emolake.jobs.bench.measurement import (
    Measurement,
    less_is_better,
    more_is_better,
    peak_mb,
    timed,
)
from emolake.jobs.bench.truth import Truth, read_truth, true_box
from emolake.pipeline.config import DecodeConfig, FacesConfig, LimitsConfig, WindowsConfig
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, Needs
from emolake.pipeline.lake.schema import VIDEO_ROW
from emolake.pipeline.video.decode import Ending, sampled_frames
from emolake.pipeline.video.frame import TimedFrame

_DECODE = DecodeConfig()
_NEEDS = Needs(crops=(CropView(CropSpec(48)),), features=True)
_HEIGHTS = (720, 1080)
_MEMORY_MB = 700.0
_SAME_BOX_IOU = 0.4


def bench_faces(clips: list[Path], scratch: Path, options: Namespace) -> Iterator[Measurement]:
    import torch

    torch.set_num_threads(1)
    truth = read_truth(options.truth, clips)
    sizes = [*clips]
    for height in _HEIGHTS:
        for clip in clips:
            sizes.append(scratch / f"{clip.stem}_{height}.mp4")
            resized_clip(clip, sizes[-1], height)
    yield from _speed(sizes)
    yield from _actors([path for path in sizes if path not in clips])
    yield _two_hours(clips[0], scratch)
    yield from _following(clips)
    if truth:
        yield from _quality(clips, truth)
    if options.sheet:
        from emolake.jobs.bench.sheet import contact_sheet

        contact_sheet(clips, truth, options.sheet)


def frames_of(path: Path, config: DecodeConfig = _DECODE) -> Iterator[TimedFrame]:
    return sampled_frames(str(path), config, 0.0, math.inf, Ending())


def _speed(clips: list[Path]) -> Iterator[Measurement]:
    from emolake.pipeline.faces.mtcnn import Mtcnn
    from emolake.pipeline.faces.stage import FaceStage

    stage = FaceStage(FacesConfig(), WindowsConfig(), _NEEDS, _DECODE.sample_fps)
    alone = Mtcnn()
    width = FacesConfig().detect_width
    batch = FacesConfig().batch_frames
    for path in clips[: len(clips) // 3]:  # once unmeasured, so that kernels are warm
        stage(frames_of(path))
        for frame in frames_of(path):
            alone([frame.rgb(width)])
    spent: dict[str, float] = {}
    video_seconds, samples, all_frames = 0.0, 0, 0
    for path in clips:
        with timed(spent, "stage"):
            video_seconds += stage(frames_of(path)).seen_s
        with timed(spent, "decode"):
            for _ in frames_of(path):
                pass
        with timed(spent, "two threads"):
            for _ in frames_of(path, DecodeConfig(threads=2)):
                pass
        with timed(spent, "plain loop"):
            all_frames += _plain_loop(path, alone)
        pictures = [frame.rgb(width) for frame in frames_of(path)]
        samples += len(pictures)
        with timed(spent, "one by one"):
            for picture in pictures:
                alone([picture])
        with timed(spent, "batches"):
            for at in range(0, len(pictures), batch):
                alone(pictures[at : at + batch])
    rate = {name: video_seconds / seconds for name, seconds in spent.items()}
    unit = "video-s/s"
    yield more_is_better("face stage / decoding alone", rate["stage"], rate["decode"], unit, 0.45)
    yield more_is_better(
        "face stage / a plain loop over full frames", rate["stage"], rate["plain loop"], unit, 4.0
    )
    yield more_is_better(
        "decoding what is sampled / two threads on it", rate["decode"], rate["two threads"], unit, 0
    )
    yield more_is_better(
        "detecting whole frames in batches / one by one",
        samples / spent["batches"],
        samples / spent["one by one"],
        "frames/s",
        1.0,
    )
    yield more_is_better(
        "frames decoded a second, by the stage / alone",
        all_frames / spent["stage"],
        all_frames / spent["decode"],
        "frames/s",
        0.45,
    )


def _plain_loop(path: Path, detector: Any) -> int:
    """What one would write first: decode every frame, detect on each sampled one as it comes."""
    import av

    count, cell = 0, -1
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            count += 1
            here = math.floor((frame.time or 0.0) * _DECODE.sample_fps + 1e-6)
            if here != cell:
                cell = here
                detector([frame.to_ndarray(format="rgb24")])
    return count


def _actors(clips: list[Path]) -> Iterator[Measurement]:
    """Two actors against one, on the larger sizes, and the memory of a child."""
    largest_first = sorted(clips, key=lambda path: -path.stat().st_size)
    segments = [_segments_of(path) for path in largest_first]
    actors = [FaceActor(_settings()) for _ in range(2)]
    seconds = 0.0
    for actor in actors:
        seconds = sum(_seen_seconds(actor(rows)) for rows in segments)  # once unmeasured
    peak = max(_peak_of(actor) for actor in actors)
    started = time.monotonic()
    for rows in segments:
        actors[0](rows)
    one = time.monotonic() - started
    waiting = list(segments)

    def work(actor: FaceActor) -> None:
        while waiting:
            actor(waiting.pop(0))

    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, actors))
    two = time.monotonic() - started
    for actor in actors:
        actor.decoder.stop()
    yield more_is_better("two face actors / one", seconds / two, seconds / one, "video-s/s", 1.7)
    yield less_is_better("child's peak memory up to 1080p / allowed", peak, _MEMORY_MB, "MB", 1.0)


def _settings() -> FaceSettings:
    return FaceSettings(_DECODE, FacesConfig(), WindowsConfig(), LimitsConfig(), _NEEDS)


def _segments_of(path: Path, wanted: list[int] | None = None) -> pa.Table:
    """Rows of schema.SEGMENT_ROW for all or some segments of a video."""
    told = {"video_id": "v", "uri": str(path), "corpus": "bench", "attempt": 1}
    video = dict.fromkeys(VIDEO_ROW.names) | told | {"segments": wanted}
    planner = SegmentPlanner(_settings())
    rows = planner(pa.Table.from_pylist([video], VIDEO_ROW))
    planner.decoder.stop()
    return rows


def _seen_seconds(rows: pa.Table) -> float:
    return float(sum(rows["video_seconds"].to_pylist()))


def _peak_of(actor: FaceActor) -> float:
    pid = actor.decoder.pid
    assert pid is not None
    return peak_mb(pid)


def _two_hours(clip: Path, scratch: Path) -> Measurement:
    """Peak memory of a face actor's child on segments of a two-hour video, against those of a
    ten-minute one: what it holds must not grow with the length of the video."""
    peaks = []
    for seconds, segments in ((7200.0, [0, 12, 23]), (600.0, [0, 1])):
        film = scratch / f"{seconds:.0f}_seconds{clip.suffix}"
        loop_clip(clip, film, seconds)
        actor = FaceActor(_settings())
        actor(_segments_of(film, segments))
        peaks.append(_peak_of(actor))
        actor.decoder.stop()
    return less_is_better("child's peak memory, 2 h video / 10 min", peaks[0], peaks[1], "MB", 0.9)


def _following(clips: list[Path]) -> Iterator[Measurement]:
    """Faces followed between keyframes against full detection of every sampled frame."""
    from emolake.pipeline.faces.detector import pairwise_iou
    from emolake.pipeline.faces.search import FaceSearch
    from emolake.pipeline.faces.stage import make_detector

    found, wanted, overlaps = 0, 0, []
    for path in clips:
        looks = []
        for every in (0.0, FacesConfig().detect_every_seconds):
            config = FacesConfig(detect_every_seconds=every)
            looks.append(list(FaceSearch(make_detector(config), config)(frames_of(path))))
        for full, followed in zip(*looks, strict=True):
            sure = full.found().boxes[full.found().scores >= FacesConfig().min_score]
            best = pairwise_iou(sure, followed.found().boxes).max(1, initial=0.0)
            wanted += len(best)
            found += int((best >= _SAME_BOX_IOU).sum())
            overlaps += best[best >= _SAME_BOX_IOU].tolist()
    cell = 1 / _DECODE.sample_fps
    yield more_is_better(
        "face-seconds, followed / searched in every frame", found * cell, wanted * cell, "s", 0.99
    )
    overlap = float(np.mean(overlaps)) if overlaps else 1.0
    yield more_is_better("overlap of those boxes (mean IoU) / 1", overlap, 1.0, "IoU", 0.85)


def _quality(clips: list[Path], truth: Truth) -> Iterator[Measurement]:
    """Tracks against the truth, sampled frame by sampled frame."""
    from emolake.pipeline.faces.detector import pairwise_iou
    from emolake.pipeline.faces.stage import FaceStage

    stage = FaceStage(FacesConfig(), WindowsConfig(), _NEEDS, _DECODE.sample_fps)
    present, matched, strange, total = 0, 0, 0, 0
    people, fragments, switches = 0, 0, 0
    for path in clips:
        times = [frame.time_s for frame in frames_of(path)]
        tracks = stage.tracks(frames_of(path))
        boxes = [{b.time_s: b.box for b in track.places()} for track in tracks]
        persons = [p for p in truth.get(path.name, []) if p["level"] != "optional"]
        shown_as: list[list[int]] = [[] for _ in persons]
        for time_s in times:
            here = [(k, placed[time_s]) for k, placed in enumerate(boxes) if time_s in placed]
            total += len(here)
            explained = set()
            for person in truth.get(path.name, []):
                if not person["start_s"] <= time_s <= person["end_s"] or not here:
                    continue
                iou = pairwise_iou(true_box(person, time_s)[None], np.stack([b for _, b in here]))
                best = int(iou[0].argmax())
                if iou[0, best] >= _SAME_BOX_IOU:
                    explained.add(here[best][0])
                    if person in persons:
                        shown_as[persons.index(person)].append(here[best][0])
            present += sum(p["start_s"] <= time_s <= p["end_s"] for p in persons)
            strange += len(here) - len(explained)
        matched += sum(len(shown) for shown in shown_as)
        people += len(persons)
        fragments += sum(len(set(shown)) for shown in shown_as)
        switches += sum(a != b for shown in shown_as for a, b in pairwise(shown))
    cell = 1 / _DECODE.sample_fps
    yield more_is_better(
        "face-seconds found / in the truth", matched * cell, present * cell, "s", 0.95
    )
    yield Measurement(
        "face-seconds that no person explains / all",
        strange * cell, total * cell, 1 - strange / max(total, 1), "s", 0.98,
    )  # fmt: skip
    yield less_is_better("tracks / persons in their shots", fragments, people, "tracks", 0.9)
    yield Measurement("identity switches / none", switches, 0, 1 / (1 + switches), "switches", 1.0)
