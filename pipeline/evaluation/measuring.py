"""An output's windows of faces, counted by group, beside what people said of some of them; and draws for
people to say it of."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.audit import KEY, Said, same_window
from emolake.pipeline.evaluation.shares import Audit, lot, share, worth
from emolake.pipeline.labels import canonical
from emolake.pipeline.lake.commit import SHORTEST_S, seconds_of
from emolake.pipeline.lake.labels import WINDOW, Labels
from emolake.pipeline.lake.reading import stream, table_schema
from emolake.pipeline.lake.schema import VIDEO_ITSELF

PLACE = ("uri", "start_s", "end_s", *KEY, "video_id")
_READ = (*PLACE, "emotion", "scores", "model")

Group = tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """From `low` to `high` of the hundred parts into which chance divides windows, the same whoever annotated
    them, and independent of all draws. What a model learns from and what it is measured by are two."""

    low: float
    high: float

    @classmethod
    def of(cls, told: str | None) -> Part | None:
        """`told`: LOW:HIGH, percent. UserError where it is none."""
        if told is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", told)
        if match is None or not float(match[1]) < float(match[2]) <= 100:
            raise UserError(
                f"--part {told}: say from which to which percent, such as 0:70 and 70:100"
            )
        return cls(float(match[1]), float(match[2]))

    def holds(self, row: Mapping[str, Any]) -> bool:
        place = int.from_bytes(lot("part\0" + _name(row), 0)[:8]) / 2**64
        return self.low <= 100 * place < self.high

    def of_table(self, table: pa.Table) -> pa.Table:
        rows = table.select(["uri", *KEY]).to_pylist()
        return table.filter(pa.array(map(self.holds, rows), pa.bool_()))


def _name(row: Mapping[str, Any]) -> str:
    return "\0".join(str(row[name]) for name in ("uri", *KEY))


@dataclass(frozen=True)
class Output:
    """Whose windows. reading: the model's whose answers count, where several wrote; part: of all windows."""

    uri: str
    storage_options: Mapping[str, Any]
    reading: str | None = None
    part: Part | None = None

    def windows(self, columns: Sequence[str], *, whole: bool = False) -> Iterator[pa.Table]:
        """Those of faces in the part, or in the whole. UserError where rows of several models stand there and
        none was named."""
        names: set[str] = set()
        parting = ("uri", *KEY) if self.part is not None else ()
        wanted = list(dict.fromkeys([*columns, *parting, "track_id", "model"]))
        for batch in stream(self.uri, "annotations", self.storage_options, wanted):
            table = pa.Table.from_batches([batch])
            table = table.filter(pc.not_equal(table["track_id"], VIDEO_ITSELF))
            names.update(table["model"].unique().to_pylist())
            if self.reading is not None:
                table = table.filter(pc.equal(table["model"], self.reading))
            elif len(names) > 1:
                raise UserError(
                    f"the output has rows of {', '.join(sorted(names))}; say whose count: --reading NAME"
                )
            if self.part is not None and not whole:
                table = self.part.of_table(table)
            if table.num_rows:
                yield table
        if self.reading is not None and self.reading not in names:
            raise UserError(
                f"--reading {self.reading}: the output has rows of {', '.join(sorted(names))}"
            )


@dataclass
class Counts:
    """Of one group. won, guessed: seconds of each emotion, by winning labels and by probabilities, the latter
    of the `part` windows (of part_seconds) that are in the output's part; labelled: rows of these that people
    looked at, and what they said."""

    windows: int = 0
    seconds: float = 0.0
    part: int = 0
    part_seconds: float = 0.0
    won: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    guessed: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    labelled: list[tuple[dict[str, Any], list[str | None]]] = field(default_factory=list)

    def told(self, said: Said | None) -> Iterator[dict[str, Any]]:
        """An entry for each emotion; worth: how many labels would have told as much without the model."""
        seen = {label for _, labels in self.labelled for label in labels if label is not None}
        n_labels = sum(any(labels) for _, labels in self.labelled)
        for emotion in sorted(self.guessed.keys() | self.won.keys() | seen):
            entry = {
                "emotion": emotion, "naive": self.won[emotion] / self.seconds,
                "estimate": None, "low": None, "high": None,
                "n_windows": self.windows, "n_labels": n_labels,
            }  # fmt: skip
            yield entry | (self._measured(emotion, said.unit) if said and self.labelled else {})

    def _measured(self, emotion: str, unit: str) -> dict[str, Any]:
        rows = [row for row, _ in self.labelled]
        units = [row["uri"] if unit == "video" else k for k, row in enumerate(rows)]
        told = [[label for label in labels if label is not None] for _, labels in self.labelled]
        seconds = np.array([seconds_of(row) for row in rows])
        truth = np.array([of.count(emotion) / max(len(of), 1) for of in told])
        audit = Audit(
            seconds,
            np.array(
                [len(of) / len(labels) for of, (_, labels) in zip(told, self.labelled, strict=True)]
            ),
            truth,
            np.array([_merged(row["scores"]).get(emotion, 0.0) for row in rows]),
            np.unique(np.array(units), return_inverse=True)[1],
        )
        # Of a video that was drawn not all windows may be labelled: no number of videos says what is left.
        there = self.part if unit == "window" else None
        guessed = self.guessed[emotion] / self.part_seconds
        both, alone = (
            share(audit, guessed, there, of_all=self.windows, listen=listen)
            for listen in (True, False)
        )
        if both is None or alone is None:
            return {}
        shown = seconds * audit.told * truth
        won = (
            seconds * audit.told * np.array([canonical(row["emotion"]) == emotion for row in rows])
        )
        right = float(won @ truth)
        return {
            "estimate": both.estimate, "low": both.low, "high": both.high,
            "audit": alone.estimate, "audit_low": alone.low, "audit_high": alone.high,
            "worth": worth(both, alone, len(rows), there),
            "recall": right / float(shown.sum()) if shown.any() else None,
            "precision": right / float(won.sum()) if won.any() else None,
        }  # fmt: skip


def groupable() -> list[str]:
    """Columns of annotations that may tell groups apart."""
    made = ("emotion", "confidence")
    return [
        f.name
        for f in table_schema("annotations")
        if not pa.types.is_nested(f.type) and f.name not in made
    ]


def counted(output: Output, by: Sequence[str], said: Said | None) -> dict[Group, Counts]:
    """UserError where there is no window of a face, or labels do not fit what is there."""
    found: dict[Group, Counts] = defaultdict(Counts)
    videos: set[str] = set()
    by_videos = said is not None and said.unit == "video"
    for table in output.windows([*_READ, *by], whole=True):
        for group, part in _apart(table, by):
            _add(found[group], part, output.part, said)
        if by_videos:
            videos.update(table["uri"].unique().to_pylist())
    if not found:
        raise UserError(f"{output.uri} has no window of a face; annotate some first")
    if said is not None:
        there = len(videos) if by_videos else sum(counts.part for counts in found.values())
        _check_drawn(said, there, sum(len(counts.labelled) for counts in found.values()))
    return found


def _apart(table: pa.Table, by: Sequence[str]) -> Iterator[tuple[Group, pa.Table]]:
    """A batch by group."""
    if not by:
        yield (), table
        return
    groups = list(zip(*(table[name].to_pylist() for name in by), strict=True))
    rows: dict[Group, list[int]] = defaultdict(list)
    for k, group in enumerate(groups):
        rows[group].append(k)
    for group, own in rows.items():
        yield group, table.take(pa.array(own, pa.int64()))


def _add(counts: Counts, table: pa.Table, part: Part | None, said: Said | None) -> None:
    _sum(counts.won, table["emotion"].combine_chunks(), seconds := _seconds(table))
    counts.windows += table.num_rows
    counts.seconds += float(seconds.sum())
    if part is not None:
        table = part.of_table(table)
        seconds = _seconds(table)
    counts.part += table.num_rows
    counts.part_seconds += float(seconds.sum())
    scores = table["scores"].combine_chunks()
    values = scores.items.to_numpy(zero_copy_only=False).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError("the output has scores that are no numbers; annotate these videos again")
    offsets = scores.offsets.to_numpy()
    of_each = np.repeat(seconds, np.diff(offsets)) * values[offsets[0] : offsets[-1]]
    names = scores.keys.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    _sum(counts.guessed, names, of_each)
    if said is not None:
        wanted = pa.array(list(said.windows), pa.string())
        name = pc.replace_substring_regex(table["uri"], r"(?s)^.*/", "")
        maybe = pc.or_(pc.is_in(table["uri"], wanted), pc.is_in(name, wanted))
        for row in table.filter(maybe).to_pylist():
            if labels := said.of(row):
                counts.labelled.append((row, labels))


def _seconds(table: pa.Table) -> NDArray[np.float64]:
    lengths = pc.subtract(table["end_s"], table["start_s"]).to_numpy()
    return np.maximum(lengths, SHORTEST_S)


def _sum(into: dict[str, float], labels: pa.Array, weights: NDArray[np.float64]) -> None:
    coded = labels.dictionary_encode()
    sums = np.bincount(coded.indices.to_numpy(), weights, len(coded.dictionary))
    for label, total in zip(coded.dictionary.to_pylist(), sums, strict=True):
        into[canonical(label)] += float(total)


def _check_drawn(said: Said, there: int, met: int) -> None:
    if not met:
        raise UserError(
            f"{said.what}: none of its {said.missed} windows is in the output; was it drawn from another one?"
        )
    if said.drawn_from is not None and there > said.drawn_from:
        raise UserError(
            f"{said.what} was drawn from {said.drawn_from} {said.unit}s and there are {there} now, which it "
            "says nothing of; draw again with the same seed: most of what is labelled is drawn again"
        )


def _merged(scores: Sequence[tuple[str, float]]) -> dict[str, float]:
    told: dict[str, float] = defaultdict(float)
    for label, score in scores:
        told[canonical(label)] += score
    return told


@dataclass(frozen=True)
class Draw:
    """rows: PLACE each, in the order in which they were drawn; drawn_from: how many windows or videos."""

    rows: list[dict[str, Any]]
    drawn_from: int


def draw_windows(output: Output, n: int, seed: int) -> Draw:
    count = 0

    def rows() -> Iterator[tuple[bytes, int, dict[str, Any]]]:
        nonlocal count
        for table in output.windows(PLACE):
            for row in table.select(list(PLACE)).to_pylist():
                count += 1
                yield lot(_name(row), seed), count, row

    chosen = [row for _, _, row in heapq.nsmallest(n, rows())]
    return Draw(chosen, count)


def draw_videos(output: Output, n: int, seed: int) -> Draw:
    """All windows of n videos."""
    uris: set[str] = set()
    for table in output.windows(["uri"]):
        uris.update(table["uri"].unique().to_pylist())
    chosen = heapq.nsmallest(n, uris, key=lambda uri: lot(uri, seed))
    order = {uri: k for k, uri in enumerate(chosen)}
    rows = [
        row
        for table in output.windows(PLACE)
        for row in table.filter(pc.is_in(table["uri"], pa.array(chosen, pa.string())))
        .select(list(PLACE))
        .to_pylist()
    ]
    rows.sort(key=lambda row: (order[row["uri"]], *(row[name] for name in KEY)))
    return Draw(rows, len(uris))


def said_of_draw(output: Output, labels: Labels, unit: str, seed: int) -> Said | None:
    """What of an output's own labels is a random sample: in the order of `lot`, all before the first window
    (or video) that is not labelled whole, where any was asked for in this order. None where none was.

    Others among these were chosen for what they are, by other queues; their place in the order was chance.
    Who is asked passes over them and stops at one that nobody has labelled, which is left out: so of n in
    the sample the k that were asked estimate their part as k / n without bias (inverse sampling: Haldane
    1945, (r - 1) / (n' - 1)).
    """
    said: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in labels.standing(["emotion"]):
        said[tuple(row[name] for name in WINDOW)].append(row)
    name = draw_name(unit, seed)
    asked = {
        tuple(row[n] for n in WINDOW) for row in labels.rows.values() if row["queue"] == name
    }  # whatever was said later
    if not asked & said.keys():
        return None
    n = len(said) if unit == "window" else len({row[0]["uri"] for row in said.values()})
    drawn = (draw_windows if unit == "window" else draw_videos)(output, n + 1, seed).rows
    found: list[tuple[dict[str, Any], list[str]]] = []
    for _, rows in groupby(enumerate(drawn), lambda at: at[1]["uri"] if unit == "video" else at[0]):
        of_unit = []
        for _, row in rows:
            own = said.get(tuple(row[name] for name in WINDOW), ())
            of_unit.append((row, [label["label"] for label in own if same_window(label, row)]))
        if not all(told for _, told in of_unit):
            break
        found += of_unit
    if not any(tuple(row[name] for name in WINDOW) in asked for row, _ in found):
        return None
    return Said.of_draw("the output's labels", unit, found)


def draws_of(labels: Labels) -> list[tuple[str, int]]:
    """Unit and seed of the random draws that labels were asked for by, the one with most first."""
    found = Counter(row["queue"] for row in labels.rows.values() if row["queue"] is not None)
    told = ((re.fullmatch(_DRAW_NAME, name), n) for name, n in found.most_common())
    return [(match[1], int(match[2])) for match, _ in told if match is not None]


_DRAW_NAME = r"random (window|video)s, seed (-?\d+)"


def draw_name(unit: str, seed: int) -> str:
    """What labels say of how they came to be asked for."""
    return f"random {unit}s, seed {seed}"
