"""What is said in a video and when: sidecar files, and subtitle streams inside it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.error import FFmpegError

from emolake.pipeline.storage.files import Storage, exists
from emolake.pipeline.video.decode import Source, clock_start, container_of

SIDECARS = (".srt", ".vtt")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_MOST_BYTES = 16 << 20
_LONGEST_CUE_S = 60.0
_MOST_INTERLEAVED_S = 10.0  # how far behind the picture of its moment a cue may stand in a file


@dataclass(frozen=True)
class Cue:
    """Something said, on the video's clock."""

    start_s: float
    end_s: float
    text: str


def read_transcript(uri: str, transcript_uri: str | None, storage: Storage) -> list[Cue] | None:
    """The cues of a sidecar file: the one named, else one beside the video with its name. None where
    there is none. ValueError where it is no SubRip or WebVTT; OSError where it cannot be read."""
    names = [transcript_uri] if transcript_uri else [_renamed(uri, end) for end in SIDECARS]
    for name in names:
        fs, path = storage.locate(name)
        if transcript_uri or exists(fs, path):
            if fs.size(path) > _MOST_BYTES:
                raise ValueError(f"{name} is too large for a transcript")
            return parse_cues(fs.cat_file(path).decode("utf-8-sig", "replace"))
    return None


def parse_cues(text: str) -> list[Cue]:
    """SubRip or WebVTT -> cues in time order, markup removed. ValueError where there is text but no
    cue."""
    written = text.strip()
    kind = "webvtt" if written.startswith("WEBVTT") else "srt"
    with av.open(io.BytesIO(written.encode()), "r", kind) as container:
        cues = _cues(container, 0.0)
    if not cues and written.removeprefix("WEBVTT"):
        raise ValueError("no SubRip or WebVTT cue in it")
    return sorted(cues, key=lambda cue: (cue.start_s, cue.end_s))


def read_subtitles(
    source: Source, start_s: float = 0.0, end_s: float = math.inf
) -> list[Cue] | None:
    """The cues of a file's first text subtitle stream that may be seen in a span (some before it too);
    None where it has none. Little more of the file is read than lies in the span."""
    with container_of(source) as container:
        if not container.streams.subtitles:
            return None
        origin = clock_start(container)
        if start_s > _LONGEST_CUE_S:
            with suppress(FFmpegError):  # what cannot be sought is read from its beginning
                container.seek(int((start_s - _LONGEST_CUE_S + origin) * av.time_base))
        return _cues(container, origin, end_s)


def _cues(container: InputContainer, origin: float, end_s: float = math.inf) -> list[Cue]:
    """origin: where the video's clock begins on the container's, seconds."""
    cues = []
    streams = [container.streams.subtitles[0], *container.streams.video[:1]]
    try:
        for packet in container.demux(streams):
            if packet.pts is None or packet.time_base is None:
                continue
            start_s = float(packet.pts * packet.time_base) - origin
            if start_s > end_s + _MOST_INTERLEAVED_S:
                break
            if packet.stream.type != "subtitle":
                continue
            length_s = float((packet.duration or 0) * packet.time_base)
            for subtitle in packet.decode():
                said = _said(subtitle)
                if said and length_s > 0:
                    cues.append(Cue(start_s, start_s + length_s, said))
    except FFmpegError:
        pass  # damaged subtitles: what came before stands
    return cues


def said_in(cues: Iterable[Cue], start_s: float, end_s: float) -> str | None:
    """The text of the cues that overlap a span, in time order; None where nothing is said."""
    said = [cue.text for cue in cues if cue.start_s < end_s and cue.end_s > start_s]
    return " ".join(said) or None


def spans_of(cues: Iterable[Cue], seconds: float) -> list[Cue]:
    """Cues joined by the slot of so many seconds, on the video's clock, in which they begin."""
    slots: dict[int, list[Cue]] = {}
    for cue in cues:
        slots.setdefault(int(cue.start_s / seconds + 1e-6), []).append(cue)
    return [
        Cue(
            members[0].start_s,
            max(cue.end_s for cue in members),
            " ".join(cue.text for cue in members),
        )
        for _, members in sorted(slots.items())
    ]


def _said(subtitle: object) -> str:
    """ASS events hold nine fields before the text; FFmpeg decodes every text format into them."""
    ass = getattr(subtitle, "ass", b"")
    line = ass.decode("utf-8", "replace") if isinstance(ass, bytes) else str(ass)
    text = line.split(",", 8)[-1].replace("\\N", " ").replace("\\n", " ")
    return _MARKUP.sub("", text).strip()


def _renamed(uri: str, suffix: str) -> str:
    folder, slash, name = uri.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}{suffix}"
