"""Instruction records on disk: what `emolake tune` learns from."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import ATTRIBUTES
from emolake.pipeline.learning.records.sources import Item
from emolake.pipeline.models.prompts import Told

RECORDS = pa.schema(
    [
        ("image", pa.binary()),
        ("uri", pa.string()),
        ("frames", pa.list_(pa.string())),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("label", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        *((name, pa.string()) for name in ATTRIBUTES),
        ("source", pa.string()),
        ("split", pa.string()),
        ("written_by", pa.string()),
    ]
)
"""One of image, uri and frames is there; the rest as in a labelled table. written_by: the kind of
template, or the model that wrote the answer."""

_ROWS_TOGETHER = 1024


def record(item: Item, told: Told, *, source: str, split: str, written_by: str) -> dict[str, Any]:
    return {
        **item.media,
        "label": item.label,
        "question": told.question,
        "answer": told.answer,
        **item.attributes,
        "source": source,
        "split": split,
        "written_by": written_by,
    }


def item_key(item: Item) -> str:
    """Names an example for good, by what it shows and what people saw in it."""
    image = item.media.get("image")
    shown = hashlib.sha256(image).hexdigest() if image is not None else item.media
    return hashlib.sha256(json.dumps([shown, item.label], sort_keys=True).encode()).hexdigest()[:24]


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Parquet, or JSONL with pictures as base64, by the file's name; it appears whole. How many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    if path.suffix == ".parquet":
        with pq.ParquetWriter(partial, RECORDS, compression="zstd") as writer:
            for rows in _together(records):
                writer.write_table(pa.Table.from_pylist(rows, RECORDS))
                count += len(rows)
    else:
        with partial.open("w") as lines:
            for row in records:
                lines.write(json.dumps(_plain(row)) + "\n")
                count += 1
    partial.replace(path)
    return count


def check_name(path: Path) -> None:
    """UserError where the name tells no format."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"--output {path}: name a .parquet or a .jsonl file")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in row.items() if value is not None}
    if "image" in told:
        told["image"] = base64.b64encode(told["image"]).decode()
    return told


def _together(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for row in records:
        rows.append(row)
        if len(rows) == _ROWS_TOGETHER:
            yield rows
            rows = []
    if rows:
        yield rows
