"""Annotations for other tools: CSV, ELAN tiers, WebVTT cues, Label Studio tasks, FiftyOne's temporal
detections."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from emolake.pipeline.errors import UserError
from emolake.pipeline.presentation.export.story import Face, Story


def as_csv(story: Story) -> str:
    """A row a window; one column for each label's score."""
    labels = sorted({label for face in story.faces for w in face.windows for label in w["scores"]})
    names = ("uri", "segment", "track_id", "person_id", "window", "start_s", "end_s", "emotion")
    scores = [f"score_{label}" for label in labels]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*names, "confidence", *scores, "model"], extrasaction="ignore")
    writer.writeheader()
    for face in story.faces:
        for w in face.windows:
            rounded = {n: round(w[n], 4) for n in ("start_s", "end_s", "confidence")}
            told = {f"score_{label}": round(w["scores"].get(label, 0.0), 4) for label in labels}
            writer.writerow(w | rounded | told)
    return out.getvalue()


def as_vtt(story: Story) -> str:
    """WebVTT (W3C): a cue a window, in time order."""
    cues = sorted(
        ((w["start_s"], w["end_s"], face.name, w) for face in story.faces for w in face.windows),
        key=lambda cue: cue[:3],
    )
    blocks = ["WEBVTT"]
    for start, end, name, w in cues:
        told = f"{name}: {w['emotion']} {round(100 * w['confidence'])} %"
        blocks.append(f"{_stamp(start)} --> {_stamp(max(end, start + 0.001))}\n{told}")
    return "\n\n".join(blocks) + "\n"


def _stamp(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{milliseconds:03}"


def as_elan(story: Story) -> str:
    """ELAN's annotation format (EAF 3.0, The Language Archive): a tier a face, times in
    milliseconds."""
    document = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "emolake",
            "DATE": datetime.now(UTC).isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = ElementTree.SubElement(
        document, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"}
    )
    url = story.uri if "://" in story.uri else f"file://{story.uri}"
    ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", {"MEDIA_URL": url, "MIME_TYPE": "video/mp4"})
    order = ElementTree.SubElement(document, "TIME_ORDER")
    slots = 0

    def slot(seconds: float) -> str:
        nonlocal slots
        slots += 1
        value = {"TIME_SLOT_ID": f"ts{slots}", "TIME_VALUE": str(round(seconds * 1000))}
        ElementTree.SubElement(order, "TIME_SLOT", value)
        return f"ts{slots}"

    count = 0
    for face in story.faces:
        tier = ElementTree.SubElement(
            document, "TIER", {"TIER_ID": face.name, "LINGUISTIC_TYPE_REF": "emotion"}
        )
        for w in face.windows:
            count += 1
            holder = ElementTree.SubElement(tier, "ANNOTATION")
            told = {
                "ANNOTATION_ID": f"a{count}",
                "TIME_SLOT_REF1": slot(w["start_s"]),
                "TIME_SLOT_REF2": slot(w["end_s"]),
            }
            aligned = ElementTree.SubElement(holder, "ALIGNABLE_ANNOTATION", told)
            value = ElementTree.SubElement(aligned, "ANNOTATION_VALUE")
            value.text = f"{w['emotion']} {w['confidence']:.2f}"
    ElementTree.SubElement(
        document,
        "LINGUISTIC_TYPE",
        {"LINGUISTIC_TYPE_ID": "emotion", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"},
    )
    ElementTree.indent(document)
    return ElementTree.tostring(document, encoding="unicode", xml_declaration=True) + "\n"


def as_label_studio(story: Story) -> str:
    """A task with predictions (Label Studio's JSON): a region of the timeline a window, a rectangle a face.

    Label Studio counts frames from 1 at the rate that its configuration states, so the true one goes with the
    task: `<Video name="video" value="$video" frameRate="$fps"/>`. UserError where the video has none.
    """
    fps = _rate(story)
    result: list[dict[str, Any]] = []
    for face in story.faces:
        result += [
            {
                "id": window_name(face, w), "from_name": "emotion", "to_name": "video",
                "type": "timelinelabels", "score": round(w["confidence"], 4),
                "value": {"ranges": [_frames(w, fps)], "timelinelabels": [w["emotion"]]},
            }
            for w in face.windows
        ]  # fmt: skip
        if len(face.path):
            result.append(
                {
                    "id": face.name.replace(" ", "-"), "from_name": "face", "to_name": "video",
                    "type": "videorectangle",
                    "value": {
                        "framesCount": round(story.duration_s * fps), "duration": story.duration_s,
                        "labels": [face.name], "sequence": _rectangles(face, fps),
                    },
                }
            )  # fmt: skip
    models = sorted({w["model"] for face in story.faces for w in face.windows})
    task = {
        "data": {"video": story.uri, "fps": fps, "video_id": story.video_id},
        "predictions": [{"model_version": ", ".join(models), "result": result}],
    }
    return json.dumps([task], indent=1, ensure_ascii=False)


def _rectangles(face: Face, fps: float) -> list[dict[str, Any]]:
    """Per cent of the frame; the last one ends the track."""
    last = len(face.path) - 1
    return [
        {
            "frame": round(time_s * fps) + 1, "time": round(time_s, 3), "enabled": k < last,
            "rotation": 0, "x": 100 * x1, "y": 100 * y1, "width": 100 * (x2 - x1),
            "height": 100 * (y2 - y1),
        }
        for k, (time_s, x1, y1, x2, y2) in enumerate(face.path.tolist())
    ]  # fmt: skip


def as_fiftyone(story: Story) -> str:
    """`labels.json` of a FiftyOneTemporalDetectionDataset: a detection a window, times in seconds."""
    detections = [
        {
            "label": w["emotion"], "timestamps": [w["start_s"], w["end_s"]],
            "confidence": round(w["confidence"], 4),
            "attributes": {"window": window_name(face, w), "model": w["model"]},
        }
        for face in story.faces
        for w in face.windows
    ]  # fmt: skip
    told = {
        "classes": sorted(
            {label for face in story.faces for w in face.windows for label in w["scores"]}
        ),
        "labels": {posixpath.splitext(story.name)[0]: detections},
    }
    return json.dumps(told, indent=1, ensure_ascii=False)


def window_name(face: Face, window: dict[str, Any]) -> str:
    """As other tools carry it, and give it back (`export.back`)."""
    return f"window-{face.segment}.{face.track_id}.{window['window']}"


def _rate(story: Story) -> float:
    if not story.fps:
        raise UserError(f"{story.name} has no frame rate, by which Label Studio counts")
    return story.fps


def _frames(window: dict[str, Any], fps: float) -> dict[str, int]:
    """First and last frame, from 1."""
    first = round(window["start_s"] * fps) + 1
    return {"start": first, "end": max(round(window["end_s"] * fps), first)}
