"""What people said of an archive's windows, those of a random draw above all."""

from __future__ import annotations

import math
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import KNOWN_LABELS, canonical
from emolake.pipeline.lake.labels import NO_EMOTION

KEY = ("segment", "track_id", "window")
"""What tells the windows of a video apart."""
UNITS = ("window", "video")
_NAMING = (KEY, ("track_id", "start_s"), ("start_s",))
SAME_S = 0.01  # of two times that mean one
_KNOWN_BY = (*KEY, "start_s", "end_s")


@dataclass
class Window:
    """A window as a table names it, and what people said: labels, None for each who could not tell any."""

    named: dict[str, float]
    said: list[str | None] = field(default_factory=list)
    met: bool = False

    def is_it(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of annotations is of it: one that has its number and another time is not, the archive
        was cut otherwise since."""
        return same_window(self.named, row)


def same_window(one: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether what names a window, by some of its number and times, names this one."""
    return all(
        abs(row[name] - one[name]) <= (SAME_S if name.endswith("_s") else 0)
        for name in _KNOWN_BY
        if name in one
    )


@dataclass
class Said:
    """unit: what was drawn for people to look at; drawn_from: how many of these there were then, where the
    table tells; windows: by uri or file name; blank: rows that nobody has filled in yet."""

    what: str
    unit: str
    drawn_from: int | None
    windows: dict[str, list[Window]]
    blank: int = 0

    @classmethod
    def of_table(cls, table: pa.Table, what: str, unit: str | None = None) -> Said:
        """what: how the table is called in errors; unit: wins over what its column `unit` says. UserError
        where it does not name windows, or a label is none."""
        columns = table.column_names
        if len(set(columns)) < len(columns):
            raise UserError(f"{what} has two columns of one name: {', '.join(columns)}")
        if missing := {"uri", "label"} - set(columns):
            raise UserError(f"{what} has no column {min(missing)!r}; it has: {', '.join(columns)}")
        if not any(set(by) <= set(columns) for by in _NAMING):
            raise UserError(
                f"{what} must name windows by {', '.join(KEY)}, or start_s; it has: {', '.join(columns)}"
            )
        known_by = [name for name in _KNOWN_BY if name in columns]
        said = cls(what, unit or "window", None, {})
        by_name: dict[str, dict[tuple[float, ...], Window]] = defaultdict(dict)
        for number, row in enumerate(table.to_pylist(), 1):
            if row["label"] is None or not str(row["label"]).strip():
                said.blank += 1
                continue
            named = {name: _number(row[name], name, f"{what}: row {number}") for name in known_by}
            if not row["uri"]:
                raise UserError(f"{what}: row {number} names no video")
            window = by_name[str(row["uri"])].setdefault(tuple(named.values()), Window(named))
            window.said.append(_label(row["label"], what))
        said.windows = {uri: list(of_one.values()) for uri, of_one in by_name.items()}
        units, drawn_from = (_same(table, name, what) for name in ("unit", "drawn_from"))
        if units is not None and units not in UNITS:
            raise UserError(f"{what}: column unit must say {' or '.join(UNITS)}")
        said.unit = unit or units or "window"
        if drawn_from is not None and said.unit == (units or "window"):
            said.drawn_from = int(_number(drawn_from, "drawn_from", what))
        return said

    @classmethod
    def of_draw(
        cls, what: str, unit: str, drawn: Iterable[tuple[Mapping[str, Any], list[str]]]
    ) -> Said:
        """drawn: windows (rows with KEY and times) in the order of a random draw, and what people said of
        each."""
        said = cls(what, unit, None, defaultdict(list))
        for row, labels in drawn:
            named = {name: float(row[name]) for name in _KNOWN_BY}
            told = [None if label in NO_EMOTION else label for label in labels]
            said.windows[row["uri"]].append(Window(named, told))
        return said

    def of(self, row: Mapping[str, Any]) -> list[str | None]:
        """Of a row of annotations, what people said. UserError where that may be of several windows."""
        found = [
            window
            for name in dict.fromkeys((row["uri"], posixpath.basename(row["uri"])))
            for window in self.windows.get(name, ())
            if window.is_it(row)
        ]
        for window in found:
            if window.met:
                at = ", ".join(f"{name} {value:g}" for name, value in window.named.items())
                raise UserError(
                    f"{self.what}: {row['uri']} has several windows at {at}; name them by the whole uri and "
                    f"{', '.join(KEY)}"
                )
            window.met = True
        return [label for window in found for label in window.said]

    @property
    def missed(self) -> int:
        """Windows that were named and that nobody has met."""
        return sum(not window.met for of_one in self.windows.values() for window in of_one)


def _label(told: Any, what: str) -> str | None:
    label = canonical(str(told).replace("_", " "))
    if label in NO_EMOTION:
        return None
    if label not in KNOWN_LABELS:
        known = ", ".join([*sorted(KNOWN_LABELS), *NO_EMOTION])
        raise UserError(f"{what}: {told!r} is no label; known are {known}")
    return label


def _number(told: Any, name: str, where: str) -> float:
    try:
        number = float(told)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (not name.endswith("_s") and number != int(number)):
        raise UserError(
            f"{where}: {name} {told!r} is no {'time' if name.endswith('_s') else 'number'}"
        )
    return number


def _same(table: pa.Table, name: str, what: str) -> Any:
    """What a column says in every row, None where there is none."""
    told = set(table[name].to_pylist()) - {None} if name in table.column_names else set()
    if len(told) > 1:
        raise UserError(f"{what}: column {name} must say the same in each row")
    return told.pop() if told else None
