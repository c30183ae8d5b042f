"""What people said of an archive's windows."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import KNOWN_LABELS, canonical

KEY = ("segment", "track_id", "window")
"""What tells the windows of a video apart."""
UNITS = ("window", "video")
_NAMING = (KEY, ("track_id", "start_s"), ("start_s",))
_NO_EMOTION = ("", "cannot tell", "not a face")


@dataclass
class Said:
    """unit: what was drawn for people to look at; windows: their labels by uri or file name, and by what
    names a window (`named_by`); untold: rows that say nothing of an emotion."""

    what: str
    unit: str
    named_by: tuple[str, ...]
    windows: dict[str, dict[tuple[Any, ...], list[str]]]
    untold: int
    _met: set[tuple[str, tuple[Any, ...]]] = field(default_factory=set)

    @classmethod
    def of_table(cls, table: pa.Table, what: str, unit: str | None = None) -> Said:
        """what: how the table is called in errors; unit: wins over what its column `unit` says. UserError
        where it does not name windows, or a label is none."""
        there = ", ".join(table.column_names)
        if missing := {"uri", "label"} - set(table.column_names):
            raise UserError(f"{what} has no column {min(missing)!r}; it has: {there}")
        named_by = next((by for by in _NAMING if set(by) <= set(table.column_names)), None)
        if named_by is None:
            raise UserError(
                f"{what} must name windows by {', '.join(KEY)}, or start_s; it has: {there}"
            )
        windows: dict[str, dict[tuple[Any, ...], list[str]]] = defaultdict(
            lambda: defaultdict(list)
        )
        untold = 0
        rows = table.to_pylist()
        for number, row in enumerate(rows, 1):
            label = canonical(str(row["label"] or "").replace("_", " "))
            if label in _NO_EMOTION:
                untold += 1
            elif label not in KNOWN_LABELS:
                known = ", ".join(sorted(KNOWN_LABELS))
                raise UserError(f"{what}: {row['label']!r} is no label; known are {known}")
            elif any(row[name] is None for name in ("uri", *named_by)):
                raise UserError(f"{what}: row {number} names no window")
            else:
                windows[row["uri"]][_named(row, named_by)].append(label)
        units = {row["unit"] for row in rows if row.get("unit")}
        if len(units) > 1 or units - set(UNITS):
            raise UserError(
                f"{what}: column unit must say {' or '.join(UNITS)}, the same in each row"
            )
        return cls(what, unit or min(units, default="window"), named_by, windows, untold)

    def of(self, row: Mapping[str, Any]) -> list[str]:
        """Of a row of annotations. UserError where a label may be that of several windows."""
        key = _named(row, self.named_by)
        for name in (row["uri"], posixpath.basename(row["uri"])):
            if told := self.windows.get(name, {}).get(key):
                if (name, key) in self._met:
                    told_by = ", ".join(
                        f"{n} {v:g}" for n, v in zip(self.named_by, key, strict=True)
                    )
                    raise UserError(
                        f"{self.what}: {name} has several windows at {told_by}; name them by uri and "
                        f"{', '.join(KEY)}"
                    )
                self._met.add((name, key))
                return told
        return []

    @property
    def missed(self) -> int:
        """Windows that were named and that nobody has met."""
        return sum(map(len, self.windows.values())) - len(self._met)


def _named(row: Mapping[str, Any], by: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(round(float(row[name]), 2) if name == "start_s" else int(row[name]) for name in by)
