"""`emolake bench`: each entry measured against a peer in the same run.

An entry is a function from the clips to measurements; `least` is the ratio it has to reach. What the
peers are stands in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.cli import print_json
from jobs.demo import make_corpus
from pipeline.corpus import VIDEO_SUFFIXES
from pipeline.errors import UserError, VideoError


@dataclass(frozen=True)
class Measurement:
    """ours and peer in `unit`; ratio says how many times better ours is."""

    name: str
    ours: float
    peer: float
    ratio: float
    unit: str
    least: float

    @property
    def ok(self) -> bool:
        return self.ratio >= self.least

    def row(self) -> dict[str, Any]:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return rounded | {"ok": self.ok}


def bench_command(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        clips = _clips(options.clips, Path(scratch))
        told = [m.row() for m in _BENCHES[options.name](clips, Path(scratch))]
    if options.json:
        print_json(told)
        return 0
    for row in told:
        verdict = "ok" if row["ok"] else "below"
        print(
            f"{row['name']:<44} ours {row['ours']:>10.3f}  peer {row['peer']:>10.3f} {row['unit']:<12} "
            f"ratio {row['ratio']:>7.2f}  least {row['least']:g}  {verdict}"
        )
    return 0


def _clips(folder: Path | None, scratch: Path) -> list[Path]:
    """Videos that open, of the named folder or the demo's corpus."""
    from pipeline.decode import probe

    if folder is None:
        paths = make_corpus(scratch / "clips")
    elif folder.is_dir():
        paths = sorted(
            p for p in folder.iterdir() if p.suffix.lstrip(".").lower() in VIDEO_SUFFIXES
        )
    else:
        raise UserError(f"{folder} is no folder; name one that holds videos")
    good = []
    for path in paths:
        try:
            probe(str(path))
            good.append(path)
        except VideoError:
            continue
    if not good:
        raise UserError(f"{folder} holds no video that opens")
    return good


def _bench_faces(clips: list[Path], scratch: Path) -> Iterator[Measurement]:
    """The face stage against decoding alone, against a loop of single frames, and its memory."""
    import torch

    from pipeline.config import DecodeConfig, FacesConfig, WindowsConfig
    from pipeline.decode import Ending, sampled_frames
    from pipeline.faces.align import CropSpec
    from pipeline.faces.mtcnn import Mtcnn
    from pipeline.faces.stage import FaceStage

    torch.set_num_threads(1)
    decode = DecodeConfig()
    stage = FaceStage(FacesConfig(), WindowsConfig(), CropSpec(48), decode.sample_fps)
    alone = Mtcnn()
    video_seconds, frames = 0.0, 0

    def sampled(path: Path) -> Iterator[Any]:
        return sampled_frames(str(path), decode, 0.0, math.inf, Ending())

    for path in clips:  # once unmeasured, so that files and kernels are warm
        stage(sampled(path))
    spent = dict.fromkeys(("stage", "decode", "loop"), 0.0)
    for path in clips:
        with _timed(spent, "stage"):
            found = stage(sampled(path))
        with _timed(spent, "decode"):
            for _ in sampled(path):
                pass
        with _timed(spent, "loop"):
            for frame in sampled(path):
                alone([frame.rgb()])
        video_seconds += found.seen_s
        frames += found.frames_seen
    rate = {name: video_seconds / seconds for name, seconds in spent.items()}
    unit = "video-s/s"
    yield Measurement(
        "face stage / decoding alone",
        rate["stage"],
        rate["decode"],
        rate["stage"] / rate["decode"],
        unit,
        0.45,
    )
    yield Measurement(
        "face stage / full-size frames one at a time",
        rate["stage"],
        rate["loop"],
        rate["stage"] / rate["loop"],
        unit,
        4.0,
    )
    yield _two_hours(clips[0], scratch)


def _two_hours(clip: Path, scratch: Path) -> Measurement:
    """Peak memory of a face actor's child on segments of a two-hour video, against those of a
    ten-minute one: what it holds must not grow with the length of the video."""
    from actors.face_actor import FaceActor, FaceSettings, SegmentPlanner
    from pipeline.config import DecodeConfig, FacesConfig, LimitsConfig, WindowsConfig
    from pipeline.faces.align import CropSpec

    settings = FaceSettings(
        DecodeConfig(), FacesConfig(), WindowsConfig(), LimitsConfig(), CropSpec(48)
    )
    films = {}
    for seconds in (7200.0, 600.0):
        films[seconds] = scratch / f"{seconds:.0f}_seconds{clip.suffix}"
        loop_clip(clip, films[seconds], seconds)

    def peak(path: Path, wanted: list[int]) -> float:
        import pyarrow as pa

        from pipeline.schema import VIDEO_ROW

        video = dict.fromkeys(VIDEO_ROW.names) | {
            "video_id": "v",
            "uri": str(path),
            "corpus": "bench",
            "attempt": 1,
            "segments": wanted,
        }
        actor = FaceActor(settings)
        actor(SegmentPlanner(settings)(pa.Table.from_pylist([video], VIDEO_ROW)))
        status = Path(f"/proc/{actor.decoder.pid}/status").read_text()
        actor.decoder.stop()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024

    long, short = peak(films[7200.0], [0, 12, 23]), peak(films[600.0], [0, 1])
    return Measurement(
        "child's peak memory, 2 h video / 10 min", long, short, short / long, "MB", 0.9
    )


def loop_clip(clip: Path, target: Path, seconds: float) -> None:
    """A video of at least `seconds`: the clip over and over, packets copied and not encoded again."""
    import av

    with av.open(str(clip)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [p for p in source.demux(stream) if p.dts is not None]
        length = max((p.pts or 0) + (p.duration or 0) for p in packets) - (packets[0].dts or 0)
        times = math.ceil(seconds / float(length * (stream.time_base or 1)))
        data = [(bytes(p), p.pts, p.dts, p.is_keyframe, p.time_base, p.duration) for p in packets]
        for k in range(times):
            for payload, pts, dts, keyframe, base, duration in data:
                packet = av.Packet(payload)
                packet.stream, packet.time_base = copy, base
                packet.pts, packet.dts = (pts or 0) + k * length, (dts or 0) + k * length
                packet.duration, packet.is_keyframe = duration, keyframe
                out.mux(packet)


def _bench_annotate(clips: list[Path], _scratch: Path) -> Iterator[Measurement]:
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
    stage = FaceStage(
        FacesConfig(), WindowsConfig(), annotator.model_config.crop, decode.sample_fps
    )
    windows: list[WindowInput] = []
    for path in clips:
        found = stage(sampled_frames(str(path), decode, 0.0, math.inf, Ending()))
        windows += [WindowInput.of(row, {}) for row in found.windows]
    if not windows:
        raise UserError("the clips show no face to annotate")
    windows = (windows * math.ceil(64 / len(windows)))[:64]
    annotator.annotate(windows[:16])
    spent = dict.fromkeys(("ours", "reference"), 0.0)
    with _timed(spent, "ours"):
        annotator.annotate(windows)
    with _timed(spent, "reference"):
        for window in windows:
            annotator.generate_answer(window, max_tokens=4)
    yield Measurement(
        "label scoring in batches / one window a call",
        len(windows) / spent["ours"],
        len(windows) / spent["reference"],
        spent["reference"] / spent["ours"],
        "windows/s",
        1.0,
    )


def _bench_pipeline(clips: list[Path], scratch: Path) -> Iterator[Measurement]:
    """The whole job and the command line's start."""
    output = scratch / "output"
    command = [sys.executable, "-m", "jobs"]
    spent = dict.fromkeys(("help", "python", "job", "again"), 0.0)
    for name, arguments in {
        "python": [sys.executable, "-c", "pass"],
        "help": [*command, "--help"],
        "job": [*command, "annotate", *map(str, clips), "--output", str(output), "--quiet"],
        "again": [*command, "annotate", *map(str, clips), "--output", str(output), "--quiet"],
    }.items():
        best = math.inf
        for _ in range(1 if name == "job" else 3):
            started = time.monotonic()
            subprocess.run(arguments, check=True, capture_output=True)
            best = min(best, time.monotonic() - started)
        spent[name] = best
    yield Measurement(
        "emolake --help / bare python",
        spent["help"],
        spent["python"],
        spent["python"] / spent["help"],
        "s",
        0.1,
    )
    yield Measurement(
        "a run with nothing to do / the run before",
        spent["again"],
        spent["job"],
        spent["job"] / spent["again"],
        "s",
        2.0,
    )


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    """Adds the time of a block to `spent[name]`."""
    started = time.monotonic()
    yield
    spent[name] += time.monotonic() - started


_BENCHES: dict[str, Callable[[list[Path], Path], Iterator[Measurement]]] = {
    "faces": _bench_faces,
    "annotate": _bench_annotate,
    "pipeline": _bench_pipeline,
}
