"""Classifiers of faces that others trained: what a folder of `transformers`, or a description beside an ONNX
file, says of one. Imports no torch.

A description is a YAML file that `--model` names:

    weights: enet_b0.onnx       # or a folder, or org/name[@revision]; relative to this file
    labels: [anger, ...]        # what each output means, in order; or own name -> ours, for a folder's names
    size: 224                   # side of the pictures, pixels; mean and std as the processor's
"""

from __future__ import annotations

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
_ACTION_UNIT = re.compile(r"AU\d+")
_CLASSIFIES = "ForImageClassification"
_NAMED = 3


class Description(BaseModel):
    """What a description may say; what it does not, the folder says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None
    name: str | None = None
    labels: list[str | None] | dict[str, str | None] | None = None
    label_set: str | None = None
    size: int | None = Field(None, ge=16, le=2048)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    crop_margin: float = Field(0.2, gt=-0.5, le=3)
    crop_rise: float = Field(0.0, ge=-1, le=1)
    probabilities: bool = False
    temperature: float = Field(1.0, gt=0)
    licence: str | None = None


class ClassifierConfig(ModelConfig):
    """classes: what each output of the network is: a canonical label, `valence`, `arousal`, an action unit
    (AU12) or None, which is not read. mean, std: of each channel, in parts of 255."""

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
        found = [[k for k, name in enumerate(self.classes) if name == label] for label in labels]
        if not any(found):
            raise UserError(
                f"model {self.name} tells {', '.join(emotions(self.classes))}, and none of them is a label "
                f"of {asked}"
            )
        return found


def is_classifier(tree: Mapping[str, Any]) -> bool:
    """Whether a config.json of `transformers` is an image classifier's."""
    architectures = tree.get("architectures") or ()
    return any(str(name).endswith(_CLASSIFIES) for name in architectures)


def classifier_config(weights: Path, name: str, said: Description) -> ClassifierConfig:
    """Of a folder of `transformers` or an ONNX file, and what a description says of it; its word wins.
    UserError where they leave open what an output means or how pictures go in."""
    of_folder = {} if weights.suffix == ONNX else _read_folder(weights)
    classes = _classes(said.labels, of_folder.get("labels"), name)
    described = said.model_dump(include={"size", "mean", "std"}, exclude_none=True)
    pixels: dict[str, Any] = of_folder | described
    for part in ("size", "mean", "std"):
        if pixels.get(part) is None:
            raise UserError(
                f"model {name}: its {part} is nowhere told: a description (a YAML file that --model names) "
                f"says `{part}:`"
            )
    size, mean, std = pixels["size"], pixels["mean"], pixels["std"]
    if min(std) <= 0:
        raise UserError(f"model {name}: std {list(std)} must be above 0")
    return ClassifierConfig(
        name=said.name or name,
        label_set=_label_set(said.label_set, classes, name),
        temperature=said.temperature,
        weights=weights,
        classes=classes,
        size=size,
        mean=mean,
        std=std,
        channels=said.channels,
        probabilities=said.probabilities,
        view=CropSpec(size, said.crop_margin, said.crop_rise),
    )


def emotions(classes: Sequence[str | None]) -> list[str]:
    """Those of the outputs that are labels, each once."""
    return list(dict.fromkeys(c for c in classes if c in KNOWN_LABELS))


def _classes(
    said: list[str | None] | dict[str, str | None] | None, own: list[str] | None, name: str
) -> tuple[str | None, ...]:
    if isinstance(said, list):
        if own is not None and len(said) != len(own):
            raise UserError(
                f"model {name}: {len(said)} labels are described and it has {len(own)} classes"
            )
        given: list[str | None] = said
    elif own is None:
        raise UserError(f"model {name}: `labels` must list what each of its outputs means")
    else:
        renamed = said or {}
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
    return label.upper() if _ACTION_UNIT.fullmatch(label.upper()) else None


def _label_set(said: str | None, classes: Sequence[str | None], name: str) -> str:
    """The smallest that has all of them, where nobody says which."""
    told = set(emotions(classes))
    if said is not None:
        if outside := sorted(told - set(label_set(said))):
            raise UserError(f"model {name}: label set {said} has no {outside[0]}")
        return said
    fitting = [own for own, labels in LABEL_SETS.items() if told <= set(labels)]
    if not fitting:
        raise UserError(
            f"model {name}: no label set has all of {', '.join(sorted(told))}; a description maps some to "
            "null"
        )
    return min(fitting, key=lambda own: len(LABEL_SETS[own]))


def _read_folder(folder: Path) -> dict[str, Any]:
    """labels, size, mean and std as far as the folder tells them; the latter two in parts of 255, whatever
    its processor scales by."""
    config = read_json(folder / "config.json")
    told: dict[str, Any] = {"size": _side(config.get("image_size"), folder)}
    names = config.get("id2label")
    if isinstance(names, dict):
        told["labels"] = [str(names[key]) for key in sorted(names, key=int)]
    if not (folder / PROCESSOR).exists():
        return told
    processor = read_json(folder / PROCESSOR)
    cut = processor.get("crop_size") if processor.get("do_center_crop") else None
    told["size"] = _side(cut or processor.get("size"), folder) or told["size"]
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.get("do_normalize", True):
        mean = processor.get("image_mean", [0.5] * 3)
        std = processor.get("image_std", [0.5] * 3)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    told["mean"] = tuple(value / (255 * factor) for value in mean)
    told["std"] = tuple(value / (255 * factor) for value in std)
    return told


def _side(size: Any, folder: Path) -> int | None:
    """Of the square that a processor makes: a number, or by its names for it."""
    if isinstance(size, dict):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
        if len(sides) > 1:
            raise UserError(f"model {folder}: it reads no squares but {size}; faces are cut square")
        return int(sides.pop()) if sides else None
    return int(size) if isinstance(size, int) else None
