"""`emolake labels`: what people said, as a table that `evaluate`, `measure` and `tune` read; and what they
said in other tools, taken in."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, part_option, storage_option
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.agreement import agreement
from emolake.pipeline.evaluation.measuring import Part
from emolake.pipeline.evaluation.shares import lot
from emolake.pipeline.lake.labels import (
    ANSWER,
    NO_EMOTION,
    WINDOW,
    Labels,
    checked,
    save,
    slot_of,
)
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.reading import in_one_moment, opened, stream, table_schema
from emolake.pipeline.presentation.export.back import Remark, remarks
from emolake.pipeline.presentation.export.story import Story, story_of
from emolake.pipeline.storage.files import parse_options

_KINDS = (".parquet", ".csv", ".jsonl")
_TABLE = pa.schema(
    [
        ("uri", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64()),
        ("label", pa.string()), ("votes", pa.map_(pa.string(), pa.int32())),
        ("video_id", pa.string()), ("segment", pa.int32()), ("track_id", pa.int32()),
        ("window", pa.int32()), ("bbox", table_schema("annotations").field("bbox").type),
        ("reviewers", pa.list_(pa.string())), ("notes", pa.list_(pa.string())),
    ]
)  # fmt: skip


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option("--output", "FILE", "Parquet, CSV or JSONL to write", type=Path, dest="file")
    parser.option(
        "--from", "FILE",
        "take in what people said elsewhere: Label Studio's JSON, ELAN's .eaf, FiftyOne's labels.json, CSV "
        "or JSONL with uri, start_s, end_s and label", type=Path, dest="taken",
    )  # fmt: skip
    parser.option("--reviewer", "NAME", "what this one said only; with --from, who said it")
    part_option(parser)
    storage_option(parser)
    parser.calls(run, "emolake labels out/ --output labels.parquet")


def run(options: Options) -> int:
    if (options.file is None) == (options.taken is None):
        raise UserError("give either --output FILE to write labels, or --from FILE to take some in")
    if options.taken is not None and options.part is not None:
        raise UserError("--part is of the labels that --output writes; --from takes all in")
    lake = opened(options.output, parse_options(options.storage_options))
    return _take_in(options, lake) if options.taken is not None else _write_out(options, lake)


def _take_in(options: Options, lake: Lake) -> int:
    stories: dict[str, Story] = {}

    def story(name: str) -> Story:
        if name not in stories:
            stories[name] = in_one_moment(lake, partial(story_of, video=name))
        return stories[name]

    said = remarks(options.taken, lambda name: story(name).fps)
    labels = Labels.of(lake)
    words = []
    missed = 0
    for remark in said:
        label = checked("emotion", remark.label)
        found = list(_meant(story(remark.video), remark))
        missed += not found
        reviewer = options.reviewer or remark.reviewer or options.taken.name
        words += [
            (window, {"reviewer": reviewer, "kind": "emotion", "label": label}) for window in found
        ]
    names = (*WINDOW, "uri", "start_s", "end_s", *ANSWER)
    rows = [{name: window[name] for name in names} | word for window, word in words]
    last = {slot_of(row): (row, window) for row, (window, _) in zip(rows, words, strict=True)}
    # Said once more where somebody has changed their mind since, an old word would win.
    known = {_word(row) for row in labels.rows.values() if row["queue"] == _TAKEN_IN}
    known |= {_word(row) for row in labels.standing(["emotion"])}
    stored = 0
    for row, window in last.values():
        if _word(row) in known:
            continue
        row |= {"revision": labels.next_revision(slot_of(row)), "blind": False, "queue": _TAKEN_IN}
        labels.add(save(lake, row, window["corpus"], window["date"]))
        stored += 1
    told = {"from": str(options.taken), "remarks": len(said), "stored": stored, "missed": missed}
    return tell(
        options, told,
        f"{options.taken}: {len(said)} remarks, {stored} labels stored"
        + (f"; {missed} are of no face that the output has there" if missed else ""),
    )  # fmt: skip


_TAKEN_IN = "from a file"  # instead of the queue that asked


def _word(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*slot_of(row), row["label"], round(row["start_s"], 2), round(row["end_s"], 2))


def _meant(story: Story, remark: Remark) -> Iterator[dict[str, Any]]:
    """The windows that a remark is about: the one it names, as long as it is about that time, or those of its
    face (of the only one there, where it names none) that it covers by half."""
    spans = [
        (face, w, min(w["end_s"], remark.end_s) - max(w["start_s"], remark.start_s))
        for face in story.faces
        for w in face.windows
        if remark.track in (None, (face.segment, face.track_id))
    ]
    for _, w, s in spans:
        longest = max(w["end_s"] - w["start_s"], remark.end_s - remark.start_s)
        if w["window"] == remark.window and 2 * s > longest:
            yield w
            return
    covered = [(face, w) for face, w, s in spans if s > 0 and 2 * s >= w["end_s"] - w["start_s"]]
    if len({face.name for face, _ in covered}) == 1:
        yield from (w for _, w in covered)


def _write_out(options: Options, lake: Lake) -> int:
    file: Path = options.file
    if file.suffix.lower() not in _KINDS:
        raise UserError(f"--output {file}: name a file that ends in {', '.join(_KINDS)}")
    if importlib.util.find_spec("nltk") is None:
        raise UserError("`labels` needs one package more: pip install 'emolake[view]'")
    part = Part.of(options.part)
    said = Labels.of(lake).standing(("emotion", "note"))
    if part is not None:
        said = [row for row in said if part.holds(row)]
    if options.reviewer is not None:
        said = [row for row in said if row["reviewer"] == options.reviewer]
    told = [row for row in said if row["kind"] == "emotion"]
    if not told:
        whose = f" of {options.reviewer}" if options.reviewer else ""
        whose += f" in part {options.part}" if part else ""
        raise UserError(f"{lake.uri} has no labels{whose}; emolake view {lake.uri} asks for some")
    rows, split = _rows(said)
    _place(rows, options)
    try:
        _write(file, rows)
    except OSError as error:
        raise UserError(f"--output {file} cannot be written: {error.strerror}") from None
    agreed = agreement([(r["reviewer"], _window_of(r), r["label"]) for r in told])
    untold = len({_window_of(row) for row in told}) - len(rows)
    result = {
        "labels": str(file), "windows": len(rows), "split": split, "no_emotion": untold,
        "reviewers": dict(Counter(row["reviewer"] for row in told)), "agreement": agreed,
    }  # fmt: skip
    return tell(options, result, *_lines(result))


def _rows(said: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """A row a window of which most who looked told an emotion; and of how many no label has most votes."""
    windows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in said:
        windows.setdefault(_window_of(row), []).append(row)
    rows = []
    split = 0
    for _, of_one in sorted(windows.items()):
        emotions = [row for row in of_one if row["kind"] == "emotion"]
        votes = Counter(row["label"] for row in emotions if row["label"] not in NO_EMOTION)
        if 2 * votes.total() <= len(emotions):
            continue
        most = max(votes.values())
        tied = sorted(label for label, n in votes.items() if n == most)
        split += len(tied) > 1
        first = emotions[0]
        rows.append(
            {name: first[name] for name in ("uri", "start_s", "end_s", *WINDOW)}
            | {
                "bbox": None,
                "label": min(tied, key=lambda label: lot(repr((_window_of(first), label)), 0)),
                "votes": dict(sorted(votes.items())),
                "reviewers": sorted(row["reviewer"] for row in emotions),
                "notes": [row["label"] for row in of_one if row["kind"] == "note"],
            }
        )  # fmt: skip
    return rows, split


def _place(rows: list[dict[str, Any]], options: Options) -> None:
    """Where the faces are, by which who reads the table finds them again; null where the window is no longer
    there."""
    wanted = {_window_of(row): row for row in rows}
    videos = pa.array({row["video_id"] for row in rows}, pa.string())
    columns = [*WINDOW, "start_s", "end_s", "bbox"]
    given = parse_options(options.storage_options)
    for batch in stream(options.output, "annotations", given, columns):
        there = pa.Table.from_batches([batch])
        for found in there.filter(pc.is_in(there["video_id"], videos)).to_pylist():
            if (row := wanted.get(_window_of(found))) is not None:
                row["bbox"] = found["bbox"]


def _window_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Of an archive that was cut otherwise since, windows of one number are several."""
    return (*(row[name] for name in WINDOW), round(row["start_s"], 2), round(row["end_s"], 2))


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        listed = [row | {"votes": list(row["votes"].items())} for row in rows]
        # pyarrow takes the name of a file for a URI where it has a colon.
        with file.open("wb") as out:
            pq.write_table(pa.Table.from_pylist(listed, _TABLE), out, compression="zstd")
        return
    with file.open("w", newline="", encoding="utf-8") as text:
        if suffix == ".jsonl":
            text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.DictWriter(text, _TABLE.names)
        writer.writeheader()
        nested = ("votes", "bbox", "reviewers", "notes")
        for row in rows:
            told = {n: json.dumps(row[n], ensure_ascii=False) for n in nested if row[n] is not None}
            writer.writerow(row | told)


def _lines(told: dict[str, Any]) -> list[str]:
    lines = [
        f"{told['labels']}: {told['windows']} windows"
        + (f", of {told['split']} no label has most votes" if told["split"] else "")
        + (
            f"; of {told['no_emotion']} more nobody could tell an emotion"
            if told["no_emotion"]
            else ""
        )
    ]
    lines += [f"{name}: {n} labels" for name, n in told["reviewers"].items()]
    agreed = told["agreement"]
    lines += [
        f"{pair['first']} and {pair['second']}: {pair['windows']} windows, the same on "
        f"{100 * pair['same']:.0f} %, Cohen's kappa {_figure(pair['kappa'])}"
        for pair in agreed["pairs"]
    ]
    if agreed["pairs"]:
        lines.append(f"Krippendorff's alpha {_figure(agreed['alpha'])}")
    return lines


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
