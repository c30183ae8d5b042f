"""The videos a benchmark runs on."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

from emolake.jobs.demo import make_corpus
from emolake.pipeline.corpus.listing import VIDEO_SUFFIXES
from emolake.pipeline.errors import UserError, VideoError
from emolake.pipeline.video.frame import Frame


def good_clips(folder: Path | None, scratch: Path) -> list[Path]:
    """Videos that open, of the named folder or the demo's corpus."""
    from emolake.pipeline.video.decode import probe

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


def resized_clip(clip: Path, target: Path, height: int) -> None:
    """The clip as H.264 of this height, with its own presentation times."""
    import av

    with av.open(str(clip)) as source, av.open(str(target), "w") as out:
        video = source.streams.video[0]
        width = round(video.width * height / video.height / 2) * 2
        stream: Any = out.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(video.time_base or 1)
        for frame in source.decode(video):
            scaled = frame.reformat(width, height, format="yuv420p")
            scaled.pts, scaled.time_base, scaled.pict_type = frame.pts, frame.time_base, 0
            out.mux(stream.encode(scaled))
        out.mux(stream.encode())


def written_clip(frames: list[Frame], target: Path, rate: int) -> None:
    """(H, W, 3) uint8 RGB pictures of one size as H.264, so many a second."""
    import av

    with av.open(str(target), "w") as out:
        stream: Any = out.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


def loop_clip(clip: Path, target: Path, seconds: float) -> None:
    """A video of so many seconds: the clip over and over, packets copied and not encoded again."""
    import av

    with av.open(str(clip)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [p for p in source.demux(stream) if p.dts is not None]
        begins = packets[0].dts or 0
        length = max((p.pts or 0) + (p.duration or 0) for p in packets) - begins
        times = math.ceil(seconds / float(length * (stream.time_base or 1)))
        data = [(bytes(p), p.pts, p.dts, p.is_keyframe, p.time_base, p.duration) for p in packets]
        for k in range(times):
            for payload, pts, dts, keyframe, base, duration in data:
                if ((dts or 0) - begins + k * length) * base >= seconds:
                    continue
                packet = av.Packet(payload)
                packet.stream, packet.time_base = copy, base
                packet.pts, packet.dts = (pts or 0) + k * length, (dts or 0) + k * length
                packet.duration, packet.is_keyframe = duration, keyframe
                out.mux(packet)


def repeated(clips: list[Path], folder: Path, times: int) -> Path:
    """A folder of links to the clips, each so many times."""
    folder.mkdir(exist_ok=True)
    for k in range(times):
        for clip in clips:
            (folder / f"{k:03d}-{clip.name}").symlink_to(clip.resolve())
    return folder
