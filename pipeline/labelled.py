"""Labelled tables: what a picture, a video or a stretch of one shows, as people saw it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.labels import canonical


def read_table(path: Path) -> pa.Table:
    """A Parquet or CSV file; UserError where it is neither."""
    try:
        if path.suffix.lower() == ".csv":
            return pyarrow.csv.read_csv(path)
        return pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a Parquet or CSV file with labels") from None
    except (OSError, pa.ArrowInvalid) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a readable Parquet or CSV file: {line}") from None


def labelled_rows(
    path: Path, labels: tuple[str, ...], *columns: str, optional: tuple[str, ...] = ()
) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows of a table and the index of their `label` among `labels`, synonyms resolved.

    columns: those a row must have; optional: those it may have. UserError where one is missing or a
    label is none of the set's.
    """
    table = read_table(path)
    for column in (*columns, "label"):
        if column not in table.column_names:
            have = ", ".join(table.column_names)
            raise UserError(f"{path} has no column {column!r}; it has: {have}")
    there = [column for column in optional if column in table.column_names]
    index = {label: i for i, label in enumerate(labels)}
    for row in table.select([*columns, *there, "label"]).to_pylist():
        label = row.pop("label")
        if canonical(str(label)) not in index:
            raise UserError(f"{path}: label {label!r} is not in the label set: {', '.join(labels)}")
        yield row, index[canonical(str(label))]
