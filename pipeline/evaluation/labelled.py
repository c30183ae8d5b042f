"""Labelled tables: pictures, videos or stretches of them, with what people saw in them.

A row's media stand in one of three columns: `image`, the bytes of an encoded picture (base64 in JSONL);
`uri`, a picture or a video, of which `start_s` and `end_s` may cut a stretch; `frames`, a list of
pictures that are one clip. The other columns say what it shows and what to ask of it: `label` what most
people saw, `votes` how many saw what.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emolake.pipeline.corpus.listing import is_video_name
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.labels import ATTRIBUTES, KNOWN_LABELS, canonical
from emolake.pipeline.lake.schema import VIDEO_ROW
from emolake.pipeline.storage.files import Storage

MEDIA = ("image", "uri", "frames")
_PLAIN = Storage()
_VOTES_ORDER = b"votes_order"
_BOX = ("x1", "y1", "x2", "y2")
_SAME_FACE = 0.2  # least overlap (IoU) of two boxes of it
_JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_table(path: str | Path, storage: Storage = _PLAIN) -> pa.Table:
    """A Parquet, CSV or JSONL file; UserError where it is none of them."""
    name = str(path)
    suffix = posixpath.splitext(name)[1].lower()
    try:
        fs, inner = storage.locate(name)
        if suffix == ".csv":
            return pyarrow.csv.read_csv(io.BytesIO(fs.cat_file(inner)))
        if suffix in _JSON_LINES:
            return pyarrow.json.read_json(io.BytesIO(fs.cat_file(inner)))
        with fs.open(inner, "rb") as stream:
            return pq.read_table(stream)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; name a Parquet, CSV or JSONL file") from None
    except (OSError, pa.ArrowInvalid) as error:
        line = in_a_line(error, 200)
        raise UserError(f"{name} is not a readable Parquet, CSV or JSONL file: {line}") from None


@dataclass(frozen=True)
class Part:
    """Rows of a table that are read together: a row group of a Parquet file, or the whole file."""

    row_group: int | None
    first: int


@dataclass(frozen=True)
class Votes:
    """What people saw in N pictures, over L labels.

    shares: (N, L) float64, rows sum to 1, or to 0 where nobody saw one of these labels; outside: (N,)
    float64 in 0..1, the share of votes for labels that are not among these.
    """

    shares: NDArray[np.float64]
    outside: NDArray[np.float64]

    @classmethod
    def of(cls, given: NDArray[np.float64], outside: NDArray[np.float64]) -> Votes:
        """given (N, L), outside (N,): counts or shares of any scale."""
        inside = given.sum(1)
        total = np.maximum(inside + outside, 1e-12)
        return cls(given / np.maximum(inside, 1e-12)[:, None], outside / total)


@dataclass(frozen=True)
class LabelledTable:
    """A labelled table. uri: where it stands, what relative uris in it are relative to; told: a row
    each, all columns but the bytes of pictures."""

    uri: str
    told: pa.Table
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    storage: Storage = field(default=_PLAIN, repr=False)

    @classmethod
    def read(cls, uri: str | Path, storage: Storage = _PLAIN) -> LabelledTable:
        """UserError where the file cannot be read or has no column of media."""
        name = str(uri) if "://" in str(uri) else str(Path(uri).resolve())
        if posixpath.splitext(name)[1].lower() in (".csv", *_JSON_LINES):
            table = read_table(name, storage)
            columns = tuple(table.column_names)
            told, parts = table, [Part(None, 0)]
        else:
            told, columns, parts = _parquet(name, storage)
        if not set(MEDIA) & set(columns):
            raise UserError(
                f"{uri} has no column {' nor '.join(map(repr, MEDIA))}; it has: {', '.join(columns)}"
            )
        told = told.select([c for c in told.column_names if c != "image"])
        return cls(name, told, columns, tuple(parts), storage)

    def __len__(self) -> int:
        return self.told.num_rows

    def column(self, name: str) -> list[Any]:
        """Values by row; nulls where the table has no such column."""
        if name not in self.told.column_names:
            return [None] * len(self)
        values: list[Any] = self.told[name].to_pylist()
        return values

    def attributes(self) -> list[dict[str, str]]:
        """By row, what is told of the person it shows."""
        columns = {name: self.column(name) for name in ATTRIBUTES}
        return [
            {name: str(values[k]) for name, values in columns.items() if values[k] is not None}
            for k in range(len(self))
        ]

    def label_indices(self, labels: tuple[str, ...]) -> list[int | None]:
        """By row, the index of its `label` among `labels`, synonyms resolved; None where it has none, or
        one that only other label sets have. UserError where there is no such column or a label is none
        of any set."""
        if "label" not in self.columns:
            have = ", ".join(self.columns)
            raise UserError(f"{self.uri} has no column 'label'; it has: {have}")
        index = {label: i for i, label in enumerate(labels)}
        found = []
        for label in self.column("label"):
            name = None if label is None else canonical(str(label))
            if name is not None and name not in index and name not in KNOWN_LABELS:
                known = ", ".join(labels)
                raise UserError(f"{self.uri}: label {label!r} is not in the label set: {known}")
            found.append(None if name is None else index.get(name))
        return found

    def units(self) -> list[str]:
        """By row, what resembles others that bear the same name: the `person`, else the media's `uri`, else
        the picture (`exact_group`, where it is not negative), else the row itself."""
        columns = (self.column("person"), self.column("uri"), self.column("exact_group"))
        told = []
        for row, (person, uri, group) in enumerate(zip(*columns, strict=True)):
            alone = group is None or group < 0
            told.append(str(person or uri or (f"row {row}" if alone else f"group {group}")))
        return told

    def boxes(self) -> list[dict[str, float] | None]:
        """By row, where the face that is meant is in the middle of its stretch: column `bbox`, a mapping (a
        struct, or JSON) of x1, y1, x2 and y2 in fractions of the frame. UserError where it is none."""
        boxes: list[dict[str, float] | None] = []
        for given in self.column("bbox"):
            try:
                box = json.loads(given) if isinstance(given, str) else given
                boxes.append(box and {name: float(box[name]) for name in _BOX})
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{self.uri}: bbox {str(given)[:80]!r} names no box") from None
        return boxes

    def votes_as_cast(self) -> NDArray[np.float64] | None:
        """(N, K) counts of column `votes_raw`, whatever they are for; None where there is no such column."""
        if "votes_raw" not in self.columns:
            return None
        return np.array(self.column("votes_raw"), np.float64)

    def votes(self, labels: tuple[str, ...]) -> Votes | None:
        """What people saw, where the table tells: column `votes`, a mapping of label to share (a struct, a
        map, or JSON), or a list in the order of the file's `votes_order` metadata. UserError where it is
        neither."""
        if "votes" not in self.columns:
            return None
        order = (self.told.schema.metadata or {}).get(_VOTES_ORDER)
        names = [canonical(name) for name in order.decode().split(",")] if order else None
        index = {label: i for i, label in enumerate(labels)}
        shares = np.zeros((len(self), len(labels)))
        outside = np.zeros(len(self))
        for row, given in enumerate(self.column("votes")):
            for label, share in self._named_votes(given, names):
                if canonical(str(label)) in index:
                    shares[row, index[canonical(str(label))]] += share
                else:
                    outside[row] += share
        return Votes.of(shares, outside)

    def _named_votes(self, given: Any, names: list[str] | None) -> list[tuple[str, float]]:
        try:
            if isinstance(given, str):
                given = json.loads(given)
            if isinstance(given, dict):
                given = list(given.items())
            elif given and not isinstance(given[0], tuple):
                if names is None:
                    raise UserError(
                        f"{self.uri}: votes are lists, and the file's metadata has no `votes_order` that "
                        "names their labels; write a mapping of label to share, or that entry"
                    )
                given = list(zip(names, given, strict=True))
            told = [(label, float(share)) for label, share in given or [] if share is not None]
            if any(not 0 <= share < math.inf for _, share in told):
                raise ValueError("a share is negative or no number")
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.uri}: votes {str(given)[:80]!r}: {error}") from None
        return told

    @property
    def has_videos(self) -> bool:
        return any(is_video_name(uri) for uri in self.column("uri") if uri)

    def media(self, part: Part, batch_rows: int = 64) -> Iterator[pa.Table]:
        """Rows of schema.VIDEO_ROW of a part; video_id is the row's number in the table. One without
        media is `missing`: not_found."""
        row = part.first
        for batch in self._batches(part, batch_rows):
            given = batch.to_pylist()
            rows = [self._media(row + k, told) for k, told in enumerate(given)]
            row += len(given)
            yield pa.Table.from_pylist(rows, VIDEO_ROW)

    def _batches(self, part: Part, batch_rows: int) -> Iterator[Any]:
        wanted = {*MEDIA, *ATTRIBUTES, "start_s", "end_s", "transcript_uri"}
        columns = [c for c in self.columns if c in wanted]
        if part.row_group is None:
            yield from read_table(self.uri, self.storage).select(columns).to_batches(batch_rows)
            return
        fs, path = self.storage.locate(self.uri)
        with fs.open(path, "rb") as stream:
            file = pq.ParquetFile(stream)
            yield from file.iter_batches(batch_rows, [part.row_group], columns)

    def _media(self, index: int, told: dict[str, Any]) -> dict[str, Any]:
        image, uri, frames = (told.get(name) for name in MEDIA)
        row = dict.fromkeys(VIDEO_ROW.names) | {
            "video_id": str(index),
            "uri": f"{self.uri}#{index}",
            "corpus": "labelled",
            "attempt": 1,
            "transcript_uri": told.get("transcript_uri"),
        }
        row |= {name: None if told.get(name) is None else str(told[name]) for name in ATTRIBUTES}
        if image is not None:
            row["pictures"] = [{"uri": None, "bytes": _bytes_of(image)}]
        elif frames:
            row["pictures"] = [{"uri": self._beside(one), "bytes": None} for one in frames]
        elif uri and is_video_name(uri):
            row["uri"] = self._beside(uri)
            span = {"start_s": told.get("start_s"), "end_s": told.get("end_s")}
            row["span"] = span if any(v is not None for v in span.values()) else None
        elif uri:
            row["pictures"] = [{"uri": self._beside(uri), "bytes": None}]
        else:
            row["missing"] = "not_found"
        return row

    def _beside(self, uri: str) -> str:
        """Relative uris are relative to the folder of the table that names them."""
        if "://" in uri or posixpath.isabs(uri):
            return uri
        return posixpath.join(posixpath.dirname(self.uri), uri)


def of_face(
    windows: Sequence[Mapping[str, Any]], box: Mapping[str, float] | None
) -> list[Mapping[str, Any]]:
    """Those windows (with `bbox` and `track_id`) that show the face that was in a box: of the track that
    comes nearest; all where no box is told."""
    if box is None:
        return list(windows)
    shared = [_overlap(window["bbox"], box) for window in windows]
    best = max(range(len(shared)), key=shared.__getitem__, default=None)
    if best is None or shared[best] < _SAME_FACE:
        return []
    return [w for w in windows if w["track_id"] == windows[best]["track_id"]]


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Intersection over union."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    inside = area(
        *(max(one[name], other[name]) for name in _BOX[:2]),
        *(min(one[name], other[name]) for name in _BOX[2:]),
    )
    both = area(*(one[n] for n in _BOX)) + area(*(other[n] for n in _BOX)) - inside
    return inside / both if both > 0 else 0.0


def _parquet(uri: str, storage: Storage) -> tuple[pa.Table, tuple[str, ...], list[Part]]:
    """All columns but the pictures' bytes, the names of all, and where its parts begin."""
    fs, path = storage.locate(uri)
    try:
        with fs.open(path, "rb") as stream:
            file = pq.ParquetFile(stream)
            columns = tuple(file.schema_arrow.names)
            told = file.read([c for c in columns if c != "image"])
            parts, first = [], 0
            for group in range(file.num_row_groups):
                parts.append(Part(group, first))
                first += file.metadata.row_group(group).num_rows
    except FileNotFoundError:
        raise UserError(f"{uri} does not exist; name a Parquet, CSV or JSONL file") from None
    except (OSError, pa.ArrowInvalid) as error:
        line = in_a_line(error, 200)
        raise UserError(f"{uri} is not a readable Parquet, CSV or JSONL file: {line}") from None
    if not told.num_columns:  # pictures alone: the rows still count
        told = pa.table({"row": pc.cast(pa.array(range(first)), pa.int64())})
    return told, columns, parts


def _bytes_of(image: Any) -> bytes:
    """Bytes as they are, base64 text as the bytes it stands for; text that is none gives none."""
    if isinstance(image, bytes):
        return image
    try:
        return base64.b64decode(str(image), validate=True)
    except (binascii.Error, ValueError):
        return b""
