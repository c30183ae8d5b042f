"""Labelled tables and instruction records -> examples ready for training: canvases of their faces,
landmarks and features, what to ask and what to answer.

A canvas shows half as much again as the model's crop at twice its resolution, so that every
augmentation is one warp of the canvas and no picture is found, aligned and cut more than once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.corpus.listing import stat_video
from emolake.pipeline.errors import UserError, VideoError
from emolake.pipeline.evaluation.labelled import LabelledTable, Votes, of_face
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.encoding import decode_crop, decode_picture, to_grayscale
from emolake.pipeline.faces.needs import CropView, Needs
from emolake.pipeline.faces.still import still_window
from emolake.pipeline.labels import canonical
from emolake.pipeline.models.prompts import Told

FIELD = 1.5
"""Side of the canvas' field of view, in crops."""
RESOLUTION = 2
"""Canvas pixels per crop pixel."""

Found = tuple[int, dict[str, Any]]
"""A row's number and some of its windows (as in schema.FACES_ROW), or a `reason` why there are none."""
FindFaces = Callable[[LabelledTable, Needs, int], Iterator[Found]]
"""Of a video at most so many frames."""


@dataclass(frozen=True)
class Examples:
    """N examples of F faces in all.

    canvas: (F, S, S, C) uint8, C = 1 for a grayscale model, else 3 (RGB).
    landmarks: (F, 5, 2) float32 in canvas pixels.
    features: (F, D) float32 global face features.
    first, count: (N,) int64; the faces of an example, in time order, are first .. first + count.
    labels: (N,) int64 index into the label set, -1 where an example has none.
    shares: (N, L) float32, how many of those who were asked saw what; rows sum to 1, or to 0 where an
        example has no label.
    told: N; what is asked of each and what it is to answer.
    skipped: rows of the table that are no examples, by reason.
    """

    canvas: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    features: NDArray[np.float32]
    first: NDArray[np.int64]
    count: NDArray[np.int64]
    labels: NDArray[np.int64]
    shares: NDArray[np.float32]
    told: tuple[Told, ...]
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> Examples:
        """Some of the examples, in the order of `rows`."""
        return Examples(
            self.canvas,
            self.landmarks,
            self.features,
            self.first[rows],
            self.count[rows],
            self.labels[rows],
            self.shares[rows],
            tuple(self.told[row] for row in rows),
            self.skipped,
        )


def canvas_spec(crop: CropSpec) -> CropSpec:
    """The canvas is itself a crop: FIELD times as wide, its middle the crop's middle."""
    margin = (FIELD * (1 + 2 * crop.margin) - 1) / 2
    return CropSpec(round(crop.size * FIELD * RESOLUTION), margin, crop.rise)


def read_examples(
    uri: str,
    labels: tuple[str, ...],
    crop: CropSpec,
    *,
    grayscale: bool,
    frames: int,
    cache: Path,
    find: FindFaces,
    log: Callable[[str], None],
) -> Examples:
    """The examples of a table, of a video at most `frames` each; the faces found are kept in `cache` for
    the next time.

    A row that cannot be one (no media, a label that the set has not, a picture that cannot be read, no
    face) is left out, counted in `skipped` and told. UserError where none is left.
    """
    table = LabelledTable.read(uri)
    votes = table.votes(labels)
    told, targets, skipped = _texts(table, labels, votes)
    shape = _Shape(crop, grayscale, frames)
    faces = _Faces.of(table, shape, cache, find)
    rows = []
    for row, target in enumerate(targets):
        if target is None:
            continue
        if row in faces.place:
            rows.append(row)
        else:
            skipped[faces.reasons.get(row, "no_face")] += 1
    name = Path(table.uri).name
    for reason, count in sorted(skipped.items()):
        log(f"{name}: {count} of {len(table)} rows left out: {_WORDS.get(reason, reason)}")
    if not rows:
        raise UserError(f"{uri} has no row to learn from; {len(table)} were left out")
    labelled = np.array([targets[row] for row in rows], np.int64)
    shares = np.eye(len(labels), dtype=np.float32)[labelled] * (labelled >= 0)[:, None]
    if votes is not None:
        seen = votes.shares[rows]
        shares = np.where(seen.sum(1, keepdims=True) > 0, seen, shares).astype(np.float32)
        outside = float(votes.outside[rows].mean())
        log(f"{name}: votes for labels outside the set: {100 * outside:.2f} %, left out")
    log(f"{name}: {len(rows)} examples")
    return Examples(
        faces.canvas,
        faces.landmarks,
        faces.features,
        np.array([faces.place[row][0] for row in rows], np.int64),
        np.array([faces.place[row][1] for row in rows], np.int64),
        labelled,
        shares,
        tuple(told[row] for row in rows),
        dict(skipped),
    )


_WORDS = {
    "unknown_label": "their label is none of the label set",
    "nothing_asked": "they have neither a label nor an answer",
    "not_found": "they name no media, or media that are not there",
    "decode_error": "their media cannot be read",
    "no_face": "no face was found",
}


_MOST = 0.5  # a row of which most votes name a label outside the set is not of the set


def _texts(
    table: LabelledTable, labels: tuple[str, ...], votes: Votes | None
) -> tuple[list[Told], list[int | None], Counter[str]]:
    """By row: what is told, and the label's index, -1 without one, None where the row is no example. Where
    a table has votes and no label, the label is what most saw."""
    index = {label: i for i, label in enumerate(labels)}
    skipped: Counter[str] = Counter()
    told: list[Told] = []
    targets: list[int | None] = []
    columns = [table.column(name) for name in ("question", "answer", "transcript", "label")]
    by_votes = votes is not None and "label" not in table.columns
    for row, (attributes, question, answer, said, label) in enumerate(
        zip(table.attributes(), *columns, strict=True)
    ):
        told.append(Told(question, answer, tuple(sorted(attributes.items())), said))
        target = -1 if label is None else index.get(canonical(str(label)))
        if by_votes and votes is not None and votes.shares[row].any():
            target = None if votes.outside[row] > _MOST else int(votes.shares[row].argmax())
        if target is None:
            skipped["unknown_label"] += 1
        elif target < 0 and not answer:
            skipped["nothing_asked"] += 1
            target = None
        targets.append(target)
    return told, targets, skipped


def pictures_here(table: LabelledTable, needs: Needs, frames: int) -> Iterator[Found]:  # noqa: ARG001
    """The faces of a table of pictures, found in this process: without Ray, and without a child that
    may die of them. UserError where the table names videos."""
    from emolake.pipeline.faces.mtcnn import Mtcnn

    if table.has_videos:
        raise UserError(f"{table.uri} names videos; their faces are found by `emolake tune`")
    mtcnn = Mtcnn()
    for part in table.parts:
        for rows in table.media(part):
            for row in rows.to_pylist():
                found: dict[str, Any] = {"windows": [], "reason": row["missing"]}
                if row["missing"] is None:
                    try:
                        pictures = [
                            decode_picture(_bytes(table, given)) for given in row["pictures"]
                        ]
                        found["windows"] = [still_window(pictures, mtcnn, needs)]
                    except VideoError as error:
                        found["reason"] = error.reason
                    except OSError:
                        found["reason"] = "not_found"
                yield int(row["video_id"]), found


def _bytes(table: LabelledTable, picture: dict[str, Any]) -> bytes:
    if picture["bytes"] is not None:
        data: bytes = picture["bytes"]
        return data
    fs, path = table.storage.locate(picture["uri"])
    read: bytes = fs.cat_file(path)
    return read


@dataclass(frozen=True)
class _Shape:
    """What of a table's faces is kept."""

    crop: CropSpec
    grayscale: bool
    frames: int


@dataclass(frozen=True)
class _Faces:
    """The faces of a table on disk, the canvases mapped and not read. place: row -> (first, count);
    reasons: row -> why it has none."""

    canvas: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    features: NDArray[np.float32]
    place: dict[int, tuple[int, int]]
    reasons: dict[int, str]

    @classmethod
    def of(cls, table: LabelledTable, wanted: _Shape, cache: Path, find: FindFaces) -> _Faces:
        # A table that was written anew is another one.
        version = stat_video(table.uri, table.storage).video_id
        key = hashlib.sha256(repr((version, wanted)).encode()).hexdigest()[:12]
        folder = cache / f"faces-{Path(table.uri).stem}-{key}"
        # The index is written last: a folder without it is unfinished and made again.
        if not (folder / _INDEX).exists():
            _write_faces(folder, table, wanted, find)
        index = json.loads((folder / _INDEX).read_text())
        shape = tuple(index["shape"])
        with np.load(folder / _POINTS, allow_pickle=False) as points:
            return cls(
                # An empty file cannot be mapped.
                np.memmap(folder / _CANVAS, np.uint8, "r", shape=shape)
                if shape[0]
                else np.zeros(shape, np.uint8),
                points["landmarks"],
                points["features"],
                {int(row): (first, count) for row, (first, count) in index["place"].items()},
                {int(row): reason for row, reason in index["reasons"].items()},
            )


_CANVAS, _POINTS, _INDEX = "canvas.u8", "points.npz", "index.json"


def _write_faces(folder: Path, table: LabelledTable, wanted: _Shape, find: FindFaces) -> None:
    """Of a video with several faces the one whose box the table tells, else the one of whom a window shows
    most frames."""
    boxes = table.boxes()
    spec = canvas_spec(wanted.crop)
    needs = Needs(crops=(CropView(spec),), features=True)
    reasons: dict[int, str] = {}
    place: dict[int, tuple[int, int]] = {}
    landmarks: list[Any] = []
    features: list[Any] = []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _CANVAS).open("wb") as canvases:

        def put(row: int, shown: Mapping[str, Any]) -> None:
            crops = shown["crops"][0]
            place[row] = len(features), len(crops["pictures"])
            for encoded in crops["pictures"]:
                picture = decode_crop(encoded)
                canvases.write((to_grayscale(picture) if wanted.grayscale else picture).tobytes())
            points = np.asarray(crops["landmarks"], np.float32).reshape(-1, 5, 2)
            landmarks.extend(points * np.float32(spec.size) - np.float32(0.5))
            features.extend(np.asarray(shown["features"], np.float32))

        for row, found in find(table, needs, wanted.frames):
            if found["reason"] is not None and not found["windows"]:
                reasons[row] = found["reason"]
            for shown in of_face(found["windows"], boxes[row]):
                # A video comes segment by segment; what a longer window replaces stays unused.
                if row not in place or place[row][1] < shown["n_frames"]:
                    put(row, shown)
    np.savez(
        folder / _POINTS,
        landmarks=np.array(landmarks, np.float32),
        features=np.array(features, np.float32),
    )
    shape = (len(features), spec.size, spec.size, 1 if wanted.grayscale else 3)
    index = {"shape": shape, "place": place, "reasons": reasons}
    (folder / _INDEX).write_text(json.dumps(index))
