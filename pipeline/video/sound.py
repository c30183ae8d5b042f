"""A video's sound as a model reads it: 16 kHz, mono, on the video's clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.error import FFmpegError
from numpy.typing import NDArray

from emolake.pipeline.video.decode import Source, clock_start, container_of

RATE = 16_000


@dataclass(frozen=True)
class Sound:
    """samples: (N,) int16 at RATE, the first at `start_s`."""

    start_s: float
    samples: NDArray[np.int16]

    def span(self, start_s: float, end_s: float) -> NDArray[np.int16]:
        """The part of it that lies in a span; empty where none does."""
        first = max(round((start_s - self.start_s) * RATE), 0)
        last = max(round((end_s - self.start_s) * RATE), 0)
        return self.samples[first:last]


def read_sound(source: Source, start_s: float, end_s: float) -> Sound | None:
    """The first audio stream of a file between two times; None where it has none, or none there.

    Gaps are silence; what cannot be decoded is left out, as a player would.
    """
    with container_of(source) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        origin = clock_start(container)
        if start_s > 0:
            container.seek(round((start_s + origin) * av.time_base))
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        parts: list[tuple[float, NDArray[np.int16]]] = []
        try:
            for frame in _decoded(container, stream):
                time_s = (frame.time or 0.0) - origin
                if time_s >= end_s:
                    break
                parts += [(time_s, part.to_ndarray()[0]) for part in resampler.resample(frame)]
        except FFmpegError:
            pass  # a container that is damaged there: what came before it stands
    return _joined(parts, start_s, end_s)


def _decoded(container: Any, stream: AudioStream) -> Iterator[AudioFrame]:
    """Without what cannot be decoded, as the half packet is that a seek in MPEG-PS lands on."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            continue
        yield from frames


def _joined(
    parts: list[tuple[float, NDArray[np.int16]]], start_s: float, end_s: float
) -> Sound | None:
    """Parts laid on one clock. Within a stream they follow each other to the sample; only a real gap
    moves what comes after it."""
    if not parts:
        return None
    first_s = max(parts[0][0], start_s)
    samples: list[NDArray[np.int16]] = []
    at = round((parts[0][0] - first_s) * RATE)
    for time_s, part in parts:
        gap = round((time_s - first_s) * RATE) - at
        if gap > RATE // 10:
            samples.append(np.zeros(gap, np.int16))
            at += gap
        samples.append(part)
        at += len(part)
    joined = np.concatenate(samples)
    skipped = max(round((first_s - parts[0][0]) * RATE), 0)
    length = len(joined) if math.isinf(end_s) else round((end_s - first_s) * RATE)
    kept = joined[skipped : skipped + max(length, 0)]
    return Sound(first_s, kept) if len(kept) else None
