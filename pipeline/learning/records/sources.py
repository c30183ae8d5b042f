"""Readers of the field's labelled sets, each in the folder layout in which it is published."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from emolake.pipeline.corpus.listing import is_video_name
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.labelled import LabelledTable, Part
from emolake.pipeline.labels import ATTRIBUTES, LABEL_SETS, canonical, numbered


@dataclass(frozen=True)
class Item:
    """One labelled picture or clip. media: `uri`, `frames` or `image` and maybe `start_s`, `end_s`, as in
    a labelled table; label: as the set spells it, None where its annotators agreed on none; attributes:
    age, gender and race where the set tells them."""

    media: dict[str, Any]
    label: str | None
    attributes: dict[str, str] = field(default_factory=dict)


_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_RAF_ATTRIBUTES = {
    "gender": ("male", "female", None),
    "race": ("Caucasian", "African-American", "Asian"),
    "age": ("0-3", "4-19", "20-39", "40-69", "70+"),
}
_FERPLUS_VOTES = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)
_USAGES = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}
_FERPLUS_FOLDERS = {"train": "FER2013Train", "valid": "FER2013Valid", "test": "FER2013Test"}


def raf_db(root: Path, split: str) -> Iterator[Item]:
    """basic/: EmoLabel/list_patition_label.txt, Image/aligned or Image/original, Annotation/manual.
    https://www.whdeng.cn/RAF/model1.html"""
    root = root / "basic" if (root / "basic").is_dir() else root
    for line in _lines(root / "EmoLabel" / "list_patition_label.txt"):
        name, _, label = line.partition(" ")
        if name.startswith(f"{split}_"):
            stem = Path(name).stem
            choices = [
                root / "Image/aligned" / f"{stem}_aligned.jpg",
                root / "Image/original" / name,
            ]
            told = root / "Annotation" / "manual" / f"{stem}_manu_attri.txt"
            yield Item(
                {"uri": _first(choices)},
                numbered("raf-db", int(label)),
                _raf_attributes(told) if told.exists() else {},
            )


def _raf_attributes(path: Path) -> dict[str, str]:
    """Five landmarks, then gender, race and age, a number a line."""
    numbers = path.read_text().split("\n")[5:8]
    told = {
        name: _nth(names, int(number))
        for (name, names), number in zip(_RAF_ATTRIBUTES.items(), numbers, strict=False)
        if number.strip()
    }
    return {name: value for name, value in told.items() if value is not None}


def affectnet(root: Path, split: str) -> Iterator[Item]:
    """Either train_set/ and val_set/ with images/ID.jpg and annotations/ID_exp.npy, or the first
    release: Manually_Annotated_file_lists/{training,validation}.csv and Manually_Annotated_Images/.
    http://mohammadmahoor.com/affectnet/"""
    folder = root / {"train": "train_set", "valid": "val_set"}.get(split, f"{split}_set")
    if folder.is_dir():
        for path in sorted((folder / "images").iterdir(), key=_numbered):
            told = folder / "annotations" / f"{path.stem}_exp.npy"
            if path.suffix.lower() in _PICTURES and told.exists():
                number = int(np.load(told, allow_pickle=False).item())
                yield Item({"uri": str(path)}, numbered("affectnet", number))
        return
    name = {"train": "training", "valid": "validation"}.get(split, split)
    for row in _rows(
        _first([root / "Manually_Annotated_file_lists" / f"{name}.csv", root / f"{name}.csv"])
    ):
        shown = row["subDirectory_filePath"]
        parts = ("Manually_Annotated_Images", "Manually_Annotated", ".")
        images = [root / part / shown for part in parts]
        yield Item({"uri": _first(images)}, numbered("affectnet", int(row["expression"])))


def fer2013(root: Path, split: str) -> Iterator[Item]:
    """Either fer2013.csv (emotion, pixels, Usage) or folders {train,test}/LABEL/*.
    https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge"""
    if not (root / "fer2013.csv").exists():
        folder = _folder(root / split)
        for path in sorted(folder.glob("*/*")):
            if path.suffix.lower() in _PICTURES:
                yield Item({"uri": str(path)}, path.parent.name)
        return
    for row in _rows(root / "fer2013.csv"):
        if row["Usage"] == _USAGES.get(split):
            picture = _from_pixels(row["pixels"])
            yield Item({"image": picture}, numbered("fer2013", int(row["emotion"])))


def ferplus(root: Path, split: str) -> Iterator[Item]:
    """fer2013new.csv (votes of ten people) beside fer2013.csv, row by row, or with the pictures in
    FER2013Train, FER2013Valid, FER2013Test. The label is the majority's; a tie, or one for `unknown` or
    no face, is none. https://github.com/microsoft/FERPlus"""
    votes = _rows(root / "fer2013new.csv")
    there = (root / "fer2013.csv").exists()
    pixels = _rows(root / "fer2013.csv") if there else iter(lambda: {"pixels": ""}, None)
    for row, shown in zip(votes, pixels, strict=False):
        name = row["Image name"].strip()
        if row["Usage"] != _USAGES.get(split) or not name:
            continue
        counts = [int(row[vote]) for vote in _FERPLUS_VOTES]
        best = [vote for vote, n in zip(_FERPLUS_VOTES, counts, strict=True) if n == max(counts)]
        label = best[0] if len(best) == 1 and best[0] in LABEL_SETS["ferplus"] else None
        if there:
            media: dict[str, Any] = {"image": _from_pixels(shown["pixels"])}
        else:
            media = {"uri": str(root / _FERPLUS_FOLDERS[split] / name)}
        yield Item(media, label)


def dfew(root: Path, split: str, fold: int = 1) -> Iterator[Item]:
    """EmoLabel_DataSplit/{train,test}(single-labeled)/set_N.csv (video_name, label) with the clips under
    Clip/ as folders of frames or as videos. https://dfew-dataset.github.io"""
    folder = root / "EmoLabel_DataSplit"
    table = _first(
        [
            folder / f"{split}(single-labeled)" / f"set_{fold}.csv",
            folder / split / f"set_{fold}.csv",
        ]
    )
    clips = _clips(_folder(root / "Clip"))
    for row in _rows(table):
        name = row["video_name"].strip()
        found = clips.get(f"{int(name):05d}") or clips.get(name) or str(root / "Clip" / name)
        yield Item(_clip(found), numbered("dfew", int(row["label"])))


def mafw(root: Path, split: str, fold: int = 1) -> Iterator[Item]:
    """Train & Test Set/single/no_caption/set_N/{train,test}.txt (NAME.mp4 LABEL) with data/clips/NAME.mp4
    or data/frames/NAME/. https://mafw-database.github.io/MAFW/"""
    sets = _first([root / "Train & Test Set", root / "train_test_set" / "Train & Test Set"])
    for line in _lines(Path(sets) / "single" / "no_caption" / f"set_{fold}" / f"{split}.txt"):
        name, _, label = line.partition(" ")
        data = root / "data"
        yield Item(_clip(_first([data / "clips" / name, data / "frames" / Path(name).stem])), label)


def ferv39k(root: Path, split: str) -> Iterator[Item]:
    """4_setups/All_scenes/{train,test}_All.csv (SCENE/LABEL/CLIP LABEL) with the clips under
    2_ClipsforFaceCrop/ as folders of frames or as videos. https://wangyanckxx.github.io/Proj_CVPR2022_FERV39k.html"""
    for line in _lines(root / "4_setups" / "All_scenes" / f"{split}_All.csv"):
        name, _, label = line.partition(" ")
        clip = root / "2_ClipsforFaceCrop" / name
        found = _first([clip, *(clip.with_name(f"{clip.name}{end}") for end in (".mp4", ".avi"))])
        yield Item(_clip(found), label)


def table(path: Path, split: str) -> Iterator[Item]:
    """A labelled table of one's own: image, uri or frames, with label and maybe age, gender, race, start_s,
    end_s and split."""
    labelled = LabelledTable.read(path)
    if "label" not in labelled.columns:
        raise UserError(f"{path} has no column 'label'; it has: {', '.join(labelled.columns)}")
    labels, splits = labelled.column("label"), labelled.column("split")
    attributes = labelled.attributes()
    for row, media in _media(labelled):
        if splits[row] in (None, split):
            label = labels[row]
            yield Item(media, None if label is None else str(label), attributes[row])


def _media(labelled: LabelledTable) -> Iterator[tuple[int, dict[str, Any]]]:
    for part in labelled.parts:
        for rows in labelled.media(Part(part.row_group, part.first)):
            for given in rows.to_pylist():
                row, pictures = int(given["video_id"]), given["pictures"]
                if given["missing"] is not None:
                    media: dict[str, Any] = {}
                elif pictures is None:
                    media = {"uri": given["uri"], **(given["span"] or {})}
                elif pictures[0]["bytes"] is not None:
                    media = {"image": pictures[0]["bytes"]}
                elif len(pictures) == 1:
                    media = {"uri": pictures[0]["uri"]}
                else:
                    media = {"frames": [picture["uri"] for picture in pictures]}
                yield row, media


@dataclass(frozen=True)
class Source:
    """A published set. labels: the label set that its labels are of, None where the user has to say."""

    read: Callable[..., Iterator[Item]]
    labels: str | None
    folds: bool = False


SOURCES = {
    "raf-db": Source(raf_db, "raf-db"),
    "affectnet": Source(affectnet, "affectnet"),
    "fer2013": Source(fer2013, "fer2013"),
    "ferplus": Source(ferplus, "ferplus"),
    "dfew": Source(dfew, "dfew", folds=True),
    "mafw": Source(mafw, "mafw", folds=True),
    "ferv39k": Source(ferv39k, "ferv39k"),
    "table": Source(table, None),
}


def read_items(name: str, root: Path, split: str, fold: int) -> Iterator[Item]:
    """Items of a set; labels canonical. UserError where the folder is not laid out as it is published."""
    source = SOURCES[name]
    items = source.read(root, split, fold) if source.folds else source.read(root, split)
    try:
        for item in items:
            label = None if item.label is None else canonical(item.label)
            attributes = {k: v for k, v in item.attributes.items() if k in ATTRIBUTES}
            yield Item(item.media, label, attributes)
    except (KeyError, ValueError) as error:
        raise UserError(f"{root} is not laid out as {name} is published: {error}") from None


def _lines(path: Path) -> list[str]:
    try:
        return [
            line.strip()
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except OSError:
        raise UserError(
            f"{path} cannot be read; name the folder of the set as it is published"
        ) from None


def _rows(path: str | Path) -> Iterator[dict[str, str]]:
    """A CSV row by row: a file of pixels is too large to be held."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.DictReader(stream)
    except OSError:
        raise UserError(
            f"{path} cannot be read; name the folder of the set as it is published"
        ) from None


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path} is no folder; name the folder of the set as it is published")
    return path


def _first(choices: list[Path]) -> str:
    """The first that is there; else the first, whose absence is then told of its row."""
    return str(next((path for path in choices if path.exists()), choices[0]))


def _nth(names: tuple[Any, ...], index: int) -> Any:
    return names[index] if 0 <= index < len(names) else None


def _clips(folder: Path) -> dict[str, str]:
    """Clips by name: videos, and folders that hold pictures."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if is_video_name(path.name):
            found.setdefault(path.stem, str(path))
        elif path.suffix.lower() in _PICTURES:
            found.setdefault(path.parent.name, str(path.parent))
    return found


def _clip(found: str) -> dict[str, Any]:
    """A video, or the pictures of a folder in time order."""
    path = Path(found)
    if not path.is_dir():
        return {"uri": found}
    pictures = [p for p in path.iterdir() if p.suffix.lower() in _PICTURES]
    return {"frames": [str(picture) for picture in sorted(pictures, key=_numbered)]}


def _numbered(path: Path) -> tuple[int, str]:
    """2.jpg before 10.jpg."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0, path.name


def _from_pixels(text: str) -> bytes:
    """FER2013's 48 x 48 gray levels, as PNG."""
    levels = np.loadtxt(io.StringIO(text), dtype=np.uint8, ndmin=1)
    side = round(len(levels) ** 0.5)
    done, data = cv2.imencode(".png", levels.reshape(side, side))
    if not done:
        raise ValueError("pixels that are no picture")
    return data.tobytes()
