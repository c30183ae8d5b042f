"""What people said in other tools, in the files that these write: Label Studio's JSON export, ELAN's .eaf,
FiftyOne's labels.json, CSV and JSONL."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from emolake.pipeline.errors import UserError, in_a_line

_WINDOW = re.compile(r"(?:window-)?(\d+)\.(\d+)\.(\d+)$")
_FACE = re.compile(r"face[ -](\d+)\.(\d+)$")
_OF_THE_MODEL = re.compile(r"\s[01]\.\d\d$")
"""How `as_elan` ends what a model said; people's words end otherwise."""


@dataclass(frozen=True)
class Remark:
    """video: a uri, file name or video_id; track: (segment, track_id), and window, where the tool kept
    them."""

    video: str
    start_s: float
    end_s: float
    label: str
    track: tuple[int, int] | None = None
    window: int | None = None
    reviewer: str | None = None


def remarks(file: Path, fps_of: Callable[[str], float | None]) -> list[Remark]:
    """fps_of: a video's frame rate, for tools that count frames and do not tell at what rate. UserError where
    the file is none of these."""
    try:
        return list(_READERS[file.suffix.lower()](file, fps_of))
    except KeyError as error:
        known = ", ".join(_READERS)
        if file.suffix.lower() not in _READERS:
            raise UserError(f"--from {file}: name a file that ends in {known}") from None
        raise UserError(f"--from {file}: it has no {error}") from None
    except FileNotFoundError:
        raise UserError(f"--from {file} does not exist") from None
    except (ValueError, TypeError, AttributeError, OSError, ElementTree.ParseError) as error:
        raise UserError(f"--from {file} cannot be read: {in_a_line(error, 200)}") from None


def _json(file: Path, fps_of: Callable[[str], float | None]) -> Iterator[Remark]:
    told = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(told, dict):
        yield from _fiftyone(told, fps_of)
        return
    for task in told:
        data = task["data"]
        video = str(data.get("video_id") or data["video"])
        for annotation in task.get("annotations", ()):
            if annotation.get("was_cancelled"):
                continue
            by = annotation.get("completed_by")
            reviewer = by.get("email") if isinstance(by, dict) else by
            for region in annotation["result"]:
                if region["type"] != "timelinelabels":
                    continue
                fps = float(data.get("fps") or fps_of(video) or 0)
                if fps <= 0:
                    raise ValueError(f"nothing tells the frame rate of {video}")
                for span in region["value"]["ranges"]:
                    for label in region["value"]["timelinelabels"]:
                        yield _placed(
                            Remark(
                                video, (span["start"] - 1) / fps, span["end"] / fps, str(label),
                                reviewer=None if reviewer is None else str(reviewer),
                            ),
                            str(region.get("id", "")),
                        )  # fmt: skip


def _fiftyone(told: dict[str, Any], fps_of: Callable[[str], float | None]) -> Iterator[Remark]:
    for name, detections in told["labels"].items():
        for of_one in detections or ():
            if of_one.get("confidence") is not None:
                continue  # a model's
            if "timestamps" in of_one:
                start_s, end_s = of_one["timestamps"]
            else:
                fps = fps_of(name)
                if not fps:
                    raise ValueError(f"nothing tells the frame rate of {name}")
                start_s, end_s = (of_one["support"][0] - 1) / fps, of_one["support"][1] / fps
            window = str((of_one.get("attributes") or {}).get("window", ""))
            yield _placed(Remark(name, float(start_s), float(end_s), of_one["label"]), window)


def _elan(file: Path, _: Callable[[str], float | None]) -> Iterator[Remark]:
    document = ElementTree.parse(file).getroot()  # noqa: S314  (expat bounds entities)
    media = document.find("HEADER/MEDIA_DESCRIPTOR")
    video = media.get("MEDIA_URL", "") if media is not None else ""
    video = video.removeprefix("file://")
    slots = {
        slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE", 0)) / 1000
        for slot in document.iter("TIME_SLOT")
    }
    for tier in document.iter("TIER"):
        reviewer = tier.get("ANNOTATOR") or tier.get("PARTICIPANT")
        for said in tier.iter("ALIGNABLE_ANNOTATION"):
            label = (said.findtext("ANNOTATION_VALUE") or "").strip()
            if not label or _OF_THE_MODEL.search(label):
                continue
            spans = [slots[said.get(name)] for name in ("TIME_SLOT_REF1", "TIME_SLOT_REF2")]
            yield _placed(
                Remark(video, spans[0], spans[1], label, reviewer=reviewer), tier.get("TIER_ID", "")
            )


def _rows(file: Path, _: Callable[[str], float | None]) -> Iterator[Remark]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines) if file.suffix.lower() == ".csv" else map(json.loads, lines)
        for row in rows:
            label = row["label"]
            if label is None or not str(label).strip():
                continue
            numbers = [row.get(name) for name in ("segment", "track_id", "window")]
            named = ".".join(map(str, numbers)) if None not in numbers else ""
            yield _placed(
                Remark(
                    str(row["uri"]), float(row["start_s"]), float(row["end_s"]), str(label),
                    reviewer=row.get("reviewer") or None,
                ),
                named,
            )  # fmt: skip


_READERS: dict[str, Callable[[Path, Callable[[str], float | None]], Iterator[Remark]]] = {
    ".json": _json,
    ".eaf": _elan,
    ".csv": _rows,
    ".jsonl": _rows,
}


def _placed(remark: Remark, name: str) -> Remark:
    """With the window or the face that a name tells, where it tells one."""
    if found := _WINDOW.match(name):
        segment, track, window = map(int, found.groups())
        return replace(remark, track=(segment, track), window=window)
    if found := _FACE.match(name):
        return replace(remark, track=(int(found[1]), int(found[2])))
    return remark
