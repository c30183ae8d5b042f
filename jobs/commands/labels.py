"""`emolake labels`: what people said in the view, as a table that `evaluate`, `measure` and `tune` read."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.agreement import agreement
from emolake.pipeline.lake.labels import NO_EMOTION, WINDOW, Labels
from emolake.pipeline.lake.reading import opened
from emolake.pipeline.storage.files import parse_options

_KINDS = (".parquet", ".csv", ".jsonl")
_TABLE = pa.schema(
    [
        ("uri", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64()),
        ("label", pa.string()), ("votes", pa.map_(pa.string(), pa.int32())),
        ("video_id", pa.string()), ("segment", pa.int32()), ("track_id", pa.int32()),
        ("window", pa.int32()), ("reviewers", pa.list_(pa.string())),
        ("notes", pa.list_(pa.string())),
    ]
)  # fmt: skip


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option(
        "--output", "FILE", "Parquet, CSV or JSONL to write", type=Path, required=True, dest="file"
    )
    parser.option("--reviewer", "NAME", "what this one said only")
    storage_option(parser)
    parser.calls(run, "emolake labels out/ --output labels.parquet")


def run(options: Options) -> int:
    file: Path = options.file
    if file.suffix.lower() not in _KINDS:
        raise UserError(f"--output {file}: name a file that ends in {', '.join(_KINDS)}")
    if importlib.util.find_spec("nltk") is None:
        raise UserError("`labels` needs one package more: pip install 'emolake[view]'")
    lake = opened(options.output, parse_options(options.storage_options))
    said = Labels.of(lake).standing(("emotion", "note"))
    if options.reviewer is not None:
        said = [row for row in said if row["reviewer"] == options.reviewer]
    told = [row for row in said if row["kind"] == "emotion"]
    if not told:
        whose = f" of {options.reviewer}" if options.reviewer else ""
        raise UserError(
            f"{lake.uri} has no labels{whose}; emolake view {options.output} asks for some"
        )
    rows, split = _rows(said)
    try:
        _write(file, rows)
    except OSError as error:
        raise UserError(f"--output {file} cannot be written: {error.strerror}") from None
    agreed = agreement(
        [(row["reviewer"], tuple(row[n] for n in WINDOW), row["label"]) for row in told]
    )
    untold = len({tuple(row[n] for n in WINDOW) for row in told}) - len(rows)
    result = {
        "labels": str(file), "windows": len(rows), "split": split, "no_emotion": untold,
        "reviewers": dict(Counter(row["reviewer"] for row in told)), "agreement": agreed,
    }  # fmt: skip
    return tell(options, result, *_lines(result))


def _rows(said: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """A row a window of which most who looked told an emotion; and of how many no label has most votes."""
    windows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in said:
        windows.setdefault(tuple(row[name] for name in WINDOW), []).append(row)
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
                "label": tied[0], "votes": dict(sorted(votes.items())),
                "reviewers": sorted(row["reviewer"] for row in emotions),
                "notes": [row["label"] for row in of_one if row["kind"] == "note"],
            }
        )  # fmt: skip
    return rows, split


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        listed = [row | {"votes": list(row["votes"].items())} for row in rows]
        pq.write_table(pa.Table.from_pylist(listed, _TABLE), file, compression="zstd")
        return
    with file.open("w", newline="", encoding="utf-8") as out:
        if suffix == ".jsonl":
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.DictWriter(out, _TABLE.names)
        writer.writeheader()
        nested = ("votes", "reviewers", "notes")
        for row in rows:
            writer.writerow(row | {n: json.dumps(row[n], ensure_ascii=False) for n in nested})


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
