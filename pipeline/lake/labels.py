"""What people said of windows: a table that only grows, beside those that runs write.

A reviewer's word is a file of its own, created and never written over, so saving needs no lease: people work
while a run goes on. A row is known by its `label_id`, so a row that stands in two files is one: merging may
be killed at any step. Which of a reviewer's words on a window counts its `revision` says and no clock; of two
at once (two windows of a browser) both stand, and all readers choose the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pyarrow as pa

from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import KNOWN_LABELS, canonical
from emolake.pipeline.lake.forgetting import Forgotten
from emolake.pipeline.lake.layout import LABELS, DataFile, Lake
from emolake.pipeline.lake.lease import Fence
from emolake.pipeline.lake.schema import LABELS as SCHEMA
from emolake.pipeline.lake.schema import SCHEMA_VERSION, sort_keys

NO_EMOTION = ("cannot tell", "not a face")
KINDS = ("emotion", "same person", "note")
"""An emotion, or why there is none; `SEGMENT.TRACK` of the same video that shows the same person; a text."""
WINDOW = ("video_id", "segment", "track_id", "window")
SLOT = (*WINDOW, "reviewer", "kind")
"""What one word at a time is said of."""
ANSWER = ("emotion", "confidence", "model", "model_revision", "config_hash")
"""Of an annotation, what is kept beside what a person said of it."""
_LONGEST = 2000
_TRIES = 5


@dataclass
class Labels:
    """The table as it was read last. rows: by label_id; files: those that have been read."""

    lake: Lake
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    _last: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, lake: Lake) -> Labels:
        labels = cls(lake)
        labels.read_on()
        return labels

    def read_on(self) -> list[dict[str, Any]]:
        """The rows that have come since."""
        for left in reversed(range(_TRIES)):
            there = self.lake.files(LABELS)
            new = [file for file in there if file.path not in self.files]
            rows = []
            with suppress(FileNotFoundError):
                rows = [row for _, table in self.lake.read_tables(new) for row in table.to_pylist()]
                # A listing is no moment: it may have missed what was merged and what came for it.
                if {f.path for f in there} <= {f.path for f in self.lake.files(LABELS)}:
                    break
            if not left:
                raise FileNotFoundError(f"labels of {self.lake.uri} are being merged all the time")
        self.files = {file.path for file in there}
        forgotten = Forgotten.of(self.lake) if rows else None
        come = [row for row in rows if not (forgotten and row["uri"] in forgotten)]
        return [row for row in come if self.add(row)]

    def add(self, row: dict[str, Any]) -> bool:
        """False where it is here already."""
        if row["label_id"] in self.rows:
            return False
        self.rows[row["label_id"]] = row
        slot = slot_of(row)
        self._last[slot] = max(self._last.get(slot, row), row, key=_order)
        return True

    def standing(self, kinds: Collection[str] = KINDS) -> list[dict[str, Any]]:
        """Of each reviewer, window and kind the word that counts, those taken back left out."""
        return [
            row
            for row in list(self._last.values())  # while another thread may add some
            if row["label"] is not None and row["kind"] in kinds
        ]

    def last(self, slot: tuple[Any, ...]) -> dict[str, Any] | None:
        """The last word on one thing, which may take back the one before."""
        return self._last.get(slot)

    def next_revision(self, slot: tuple[Any, ...]) -> int:
        last = self.last(slot)
        return 1 if last is None else int(last["revision"]) + 1


def slot_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in SLOT)


def _order(row: dict[str, Any]) -> tuple[int, str]:
    return row["revision"], row["label_id"]


def checked(kind: str, label: str | None) -> str | None:
    """A label as it is stored. UserError where it is none of its kind."""
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of label; there are {', '.join(KINDS)}")
    if label is None:
        return None
    if kind == "emotion":
        plain = canonical(label.replace("_", " "))
        if plain not in KNOWN_LABELS and plain not in NO_EMOTION:
            raise UserError(f"{label!r} is no label; known are {', '.join(sorted(KNOWN_LABELS))}")
        return plain
    if kind == "same person":
        parts = label.split(".")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise UserError(f"{label!r} names no track; a track is SEGMENT.TRACK")
        return label
    if not label.strip() or len(label) > _LONGEST:
        raise UserError(f"a note has 1 to {_LONGEST} characters")
    return label


def save(lake: Lake, said: dict[str, Any], corpus: str, date: str) -> dict[str, Any]:
    """Stores one word and returns it as stored. said: the columns of schema.LABELS but those made here;
    corpus, date: the partition of the window. It is there once this returns; OSError where it is not sure.
    UserError where the video is to be forgotten: whoever erases may have looked here already."""
    row = dict.fromkeys(SCHEMA.names) | said
    row |= {"said_at": datetime.now(UTC), "schema_version": SCHEMA_VERSION}
    for left in reversed(range(_TRIES)):
        row["label_id"] = _new_id()
        table = pa.Table.from_pylist([row], SCHEMA)
        try:
            path = lake.data_path(LABELS, corpus, date, row["label_id"])
            if lake.create_table(path, table):
                if row["uri"] in Forgotten.of(lake):
                    lake.remove([path])
                    raise UserError("the video is forgotten; nothing is stored of it any more")
                return row
        except FileNotFoundError:  # erasing cleared away what was half written
            if not left:
                raise
    raise OSError(f"{lake.uri} took no label under {_TRIES} new names")


def merge(lake: Lake, fence: Fence) -> None:
    """Few files of many: one a partition. Needs the lease, as erasing does, lest one brings back what the
    other took out."""
    lake.remove(path for path, _ in lake.partial_files([LABELS]))  # whoever lives writes it again
    for files in _by_partition(lake.files(LABELS)):
        if len(files) > 1:
            _rewrite(lake, files, (), fence)


def erase_labels(lake: Lake, gone: Container[str], fence: Fence) -> int:
    """Takes what was said of some videos out; gone: their uris. How many rows went."""
    fence()
    lake.remove(path for path, _ in lake.partial_files([LABELS]))
    count = 0
    for files in _by_partition(lake.files(LABELS)):
        count += _rewrite(lake, files, gone, fence)
    return count


def _rewrite(lake: Lake, files: list[DataFile], gone: Container[str], fence: Fence) -> int:
    """One file of some, or of those that hold what is to go; how many rows went."""
    held = dict(lake.read_tables(files))
    if gone:
        held = {f: t for f, t in held.items() if any(u in gone for u in t["uri"].to_pylist())}
        if not held:
            return 0
    rows = {row["label_id"]: row for table in held.values() for row in table.to_pylist()}
    kept = [row for row in rows.values() if row["uri"] not in gone]
    fence()
    if kept:
        first = files[0]
        order = [(key, "ascending") for key in (*sort_keys(SCHEMA), "label_id")]
        path = lake.data_path(LABELS, first.corpus, first.date, _new_id())
        lake.create_table(path, pa.Table.from_pylist(kept, SCHEMA).sort_by(order))
        fence()
    lake.remove(file.path for file in held)
    return len(rows) - len(kept)


def _by_partition(files: Iterable[DataFile]) -> Iterator[list[DataFile]]:
    for _, of_one in groupby(files, key=lambda file: (file.corpus, file.date)):
        yield list(of_one)


def _new_id() -> str:
    return f"{time.time_ns():016x}-{secrets.token_hex(4)}"
