"""Classifiers of faces that others trained: what a folder of `transformers`, or a description beside an ONNX
file, says of one. Imports no torch.

A description is a YAML file that `--model` names:

    weights: enet_b0.onnx       # or a folder, or org/name@COMMIT; relative to this file
    labels: [anger, ...]        # what each output means, in order; or own name -> ours, for a folder's names
    size: 224                   # side of the pictures, pixels; mean and std of an ONNX file's input
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, Needs
from emolake.pipeline.labels import KNOWN_LABELS, LABEL_SETS, canonical, label_set
from emolake.pipeline.models.config import ModelConfig, read_json

PROCESSOR = "preprocessor_config.json"
NUMBERS = ("valence", "arousal")
DESCRIPTIONS = (".yaml", ".yml")
ONNX = ".onnx"
_ACTION_UNIT = re.compile(r"AU(\d+)")
_CLASSIFIES = "ForImageClassification"
_NAMED = 3
_SIDES = (16, 2048)


class Description(BaseModel):
    """What a description may say; what it does not, the folder says."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weights: str | None = None
    name: str | None = Field(None, pattern=r"^\S(.*\S)?$")
    labels: list[str | None] | dict[str, str | None] | None = None
    label_set: str | None = None
    size: int | None = Field(None, ge=_SIDES[0], le=_SIDES[1])
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channels: Literal["rgb", "bgr"] | None = None
    crop_margin: float = Field(0.2, gt=-0.5, le=3)
    crop_rise: float = Field(0.0, ge=-1, le=1)
    probabilities: bool = False
    temperature: float = Field(1.0, gt=0)
    licence: str | None = None


class ClassifierConfig(ModelConfig):
    """classes: what each output of the network is: a canonical label, `valence`, `arousal`, an action unit
    (AU12) or None, which is not read. mean, std: of an ONNX file's input, in parts of 255; a folder's own
    processor makes its input."""

    family: Literal["classifier"] = "classifier"
    weights: Path
    classes: tuple[str | None, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: Literal["rgb", "bgr"] = "rgb"
    probabilities: bool = False
    view: CropSpec

    @property
    def crop(self) -> CropView:
        return CropView(self.view)

    @property
    def needs(self) -> Needs:
        return Needs(crops=(self.crop,))

    def columns(self, asked: str | None) -> list[list[int]]:
        """Of each label of the set that is asked for (None: the classifier's own) the outputs that mean it.
        UserError where none of them has one."""
        labels = label_set(asked or self.label_set)
        found = [
            [
                k
                for k, name in enumerate(self.classes)
                if name and canonical(name) == canonical(label)
            ]
            for label in labels
        ]
        if not any(found):
            raise UserError(
                f"model {self.name} tells {', '.join(emotions(self.classes))}, and none of them is a label "
                f"of {asked}"
            )
        return found


def is_classifier(tree: Mapping[str, Any]) -> bool:
    """Whether a config.json of `transformers` is an image classifier's."""
    architectures = tree.get("architectures") or ()
    return any(_CLASSIFIES in str(name) for name in architectures)


def classifier_config(weights: Path, name: str, said: Description) -> ClassifierConfig:
    """Of a folder of `transformers` or an ONNX file, and what a description says of it. UserError
    where they leave open what an output means or how pictures go in."""
    own, size = (None, said.size) if weights.suffix == ONNX else _read_folder(weights)
    classes = _classes(said, own, name)
    if own is not None:
        for part in ("size", "mean", "std", "channels"):
            if getattr(said, part) is not None:
                raise UserError(f"model {name}: `{part}` is told by its own {PROCESSOR}")
    else:
        for part in ("size", "mean", "std"):
            if getattr(said, part) is None:
                raise UserError(f"model {name}: its description must say `{part}`")
        if min(said.std or ()) <= 0:
            raise UserError(f"model {name}: std {list(said.std or ())} must be above 0")
    assert size is not None
    return ClassifierConfig(
        name=said.name or name,
        label_set=_label_set(said.label_set, classes, name),
        temperature=said.temperature,
        weights=weights,
        classes=classes,
        size=size,
        mean=said.mean or (0.0, 0.0, 0.0),
        std=said.std or (1.0, 1.0, 1.0),
        channels=said.channels or "rgb",
        probabilities=said.probabilities,
        view=CropSpec(size, said.crop_margin, said.crop_rise),
    )


def emotions(classes: Sequence[str | None]) -> list[str]:
    """Those of the outputs that are labels, each once."""
    return list(dict.fromkeys(c for c in classes if c in KNOWN_LABELS))


def _classes(said: Description, own: list[str] | None, name: str) -> tuple[str | None, ...]:
    labels = said.labels
    if isinstance(labels, list):
        if own is not None and len(labels) != len(own):
            raise UserError(
                f"model {name}: {len(labels)} labels are described and it has {len(own)} classes"
            )
        given: list[str | None] = labels
    elif own is None:
        raise UserError(f"model {name}: `labels` must list what each of its outputs means")
    else:
        renamed = labels or {}
        if strange := sorted(renamed.keys() - set(own)):
            raise UserError(
                f"model {name} has no class {strange[0]!r}; its classes: {', '.join(own[:20])}"
            )
        given = [renamed.get(label, label) for label in own]
    read = [None if label is None else _meaning(str(label)) for label in given]
    unknown = [str(label) for label, known in zip(given, read, strict=True) if label and not known]
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise UserError(
            f"model {name}: {', '.join(map(repr, unknown[:_NAMED]))}{more} of its classes are no emotion "
            "that labels.yaml knows; a description says under `labels:` which they are, or null"
        )
    if not emotions(read):
        raise UserError(f"model {name}: none of its outputs is an emotion")
    return tuple(read)


def _meaning(label: str) -> str | None:
    plain = canonical(label)
    if plain in KNOWN_LABELS or plain in NUMBERS:
        return plain
    unit = _ACTION_UNIT.fullmatch(label.upper())
    return f"AU{int(unit[1])}" if unit else None


def _label_set(said: str | None, classes: Sequence[str | None], name: str) -> str:
    """The smallest that has all of them, where nobody says which."""
    told = set(emotions(classes))
    if said is not None:
        if outside := sorted(told - set(map(canonical, label_set(said)))):
            raise UserError(f"model {name}: label set {said} has no {outside[0]}")
        return said
    fitting = [own for own, labels in LABEL_SETS.items() if told <= set(map(canonical, labels))]
    if not fitting:
        raise UserError(
            f"model {name}: no label set has all of {', '.join(sorted(told))}; a description maps some to "
            "null"
        )
    return min(fitting, key=lambda own: len(LABEL_SETS[own]))


def _read_folder(folder: Path) -> tuple[list[str], int]:
    """Its classes, and the side of the crops that its processor is given: no smaller than what it makes."""
    config = read_json(folder / "config.json")
    kind = config.get("problem_type")
    if kind not in (None, "single_label_classification"):
        raise UserError(
            f"model {folder}: its classes do not exclude each other (problem_type {kind})"
        )
    if (folder / "adapter_config.json").exists():
        raise UserError(f"model {folder} has an adapter beside its weights; merge it into them")
    try:
        names = config["id2label"]
        own = [str(names[key]) for key in sorted(names, key=int)]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"model {folder}: config.json does not tell its classes (id2label)"
        ) from None
    if not (folder / PROCESSOR).exists():
        raise UserError(f"model {folder} does not say how pictures go in: it holds no {PROCESSOR}")
    processor = read_json(folder / PROCESSOR)
    side = _side(processor.get("size"), folder) or _side(config.get("image_size"), folder) or 224
    share = processor.get("crop_pct") or 1.0  # of the resized picture, ConvNeXt's
    side = round(side / share) if isinstance(share, float) and 0.1 < share < 1 else side
    if not _SIDES[0] <= side <= _SIDES[1]:
        raise UserError(f"model {folder}: pictures of {side} pixels a side are no faces' crops")
    return own, side


def _side(size: Any, folder: Path) -> int | None:
    """Of the square that a processor makes: a number, or by its names for it."""
    if isinstance(size, dict):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
        if len(sides) > 1:
            raise UserError(f"model {folder}: it reads no squares but {size}; faces are cut square")
        size = sides.pop() if sides else None
    return size if isinstance(size, int) else None


_EXTERNAL = re.compile(rb"\n\x08location\x12([\x01-\x7f])")


def external_data(path: Path) -> list[Path]:
    """Files beside an ONNX file that hold weights of it (TensorProto.external_data of onnx.proto); UserError
    where one is missing."""
    names = set()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _EXTERNAL.finditer(data):
            names.add(data[match.end() : match.end() + match[1][0]].decode(errors="replace"))
    files = [path.parent / name for name in sorted(names)]
    for file in files:
        if not file.is_file():
            raise UserError(f"{path} is not whole: it names {file.name}, which is not there")
    return files
