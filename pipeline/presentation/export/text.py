"""Annotations for other tools: CSV, ELAN tiers, WebVTT cues."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from xml.etree import ElementTree

from emolake.pipeline.presentation.export.story import Story


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
