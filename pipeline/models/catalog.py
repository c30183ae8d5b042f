"""Which models there are: embedded ones by name, folders by path, a hub's by its name
there, classifiers and models behind an endpoint by a file that describes them. Imports no torch.

A model folder holds config.json, model.safetensors (or shards with an index of the form that
`transformers` writes), tokenizer.json, where the Q-Former has another one question_tokenizer.json, and
a README.md that is the model card.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from yaml import YAMLError

from emolake.pipeline.config import read_yaml, validated
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.models.classifier import (
    DESCRIPTIONS,
    ONNX,
    PROCESSOR,
    ClassifierConfig,
    Description,
    classifier_config,
    external_data,
    is_classifier,
)
from emolake.pipeline.models.config import (
    EmolaConfig,
    EmoLlamaConfig,
    EmoLlmConfig,
    EmotionLlamaConfig,
    ModelConfig,
    read_json,
)
from emolake.pipeline.models.served import Served, ServedConfig, served_config
from emolake.pipeline.storage import hub
from emolake.pipeline.storage.hub import Part, commit_of, fetched, is_hub_name, plain_name

EMBEDDED = Path(__file__).parent / "embedded"
DEFAULT_MODEL = "emo-llama-tiny"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
INDEX = "model.safetensors.index.json"
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""As `transformers` wrote them once; text models are published so."""
TOKENIZER, QUESTION_TOKENIZER = "tokenizer.json", "question_tokenizer.json"
_FAMILIES: dict[str, type[ModelConfig]] = {
    "emo-llama": EmoLlamaConfig,
    "llama-vid": EmoLlamaConfig,
    "emola": EmolaConfig,
    "emotion-llama": EmotionLlamaConfig,
}


def embedded_models() -> list[str]:
    """Names of the models that ship with the package."""
    if not EMBEDDED.is_dir():
        return []
    return sorted(path.name for path in EMBEDDED.iterdir() if (path / CONFIG).exists())


def model_path(name_or_path: str) -> Path:
    """Where a model is: the folder of an embedded one, a folder, the file that describes a classifier, or the
    folder in this machine's cache of a hub's. UserError names what there is."""
    if name_or_path in embedded_models():
        return EMBEDDED / name_or_path
    path = Path(name_or_path).expanduser()
    if path.suffix in (*DESCRIPTIONS, ONNX) and path.is_file():
        return _description(path)
    if path.is_dir():
        if not (path / CONFIG).exists():
            raise UserError(f"{path} is no model folder: it holds no {CONFIG}")
        weight_files(path)
        return path
    if is_hub_name(name_or_path):
        folder = fetched(name_or_path)
        weight_files(folder)
        return folder
    known = ", ".join(embedded_models())
    raise UserError(
        f"model {name_or_path!r} is neither an embedded model ({known}) nor a folder on this machine, nor of "
        "the form org/name of a hub's"
    )


def folder_of(name_or_path: str, option: str) -> Path:
    """A folder that an option names, by path or by its name on a hub; UserError says which option."""
    path = Path(name_or_path).expanduser()
    if not path.exists() and is_hub_name(name_or_path):
        return fetched(name_or_path)
    if not path.is_dir():
        raise UserError(f"{option} {name_or_path} is no folder of a model")
    return path


def place_of(name_or_path: str, part: Part = "published") -> Path:
    """A file or folder, whether it is there or not, or the folder of a hub's model."""
    path = Path(name_or_path).expanduser()
    if path.exists() or not is_hub_name(name_or_path):
        return path
    return fetched(name_or_path, part)


def pinned(name_or_path: str) -> str:
    """As `model_path` takes it, on every node the same: a hub's model with its commit."""
    if name_or_path in embedded_models() or Path(name_or_path).expanduser().exists():
        return name_or_path
    return hub.pinned(name_or_path)


def read_config(path: Path) -> ModelConfig:
    """Of what `model_path` found, by its family; UserError where it is of none that we have."""
    if path.is_file():
        said = read_description(path)
        if isinstance(said, Served):
            return served_config(said, path.stem)
        return classifier_config(_described(path, said), path.stem, said)
    tree = read_json(path / CONFIG)
    if "family" not in tree and "model_type" in tree:  # a folder as `transformers` writes it
        if is_classifier(tree):
            return classifier_config(path, plain_name(path), Description())
        return EmoLlmConfig(name=plain_name(path))
    if "family" not in tree and "architecture" in tree and "pretrained_cfg" in tree:
        raise UserError(f"{path} is a model of timm's; export it to ONNX and describe that file")
    family = tree.get("family", "emo-llama")
    if family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise UserError(f"{path}/{CONFIG}: family {family!r} is unknown; known: {known}")
    return _FAMILIES[family].read(path)


def read_description(path: Path) -> Description | Served:
    """What a YAML file says of a classifier, or of a model behind an endpoint; UserError where it is none."""
    tree = read_yaml(path, "model")
    told: Description | Served = validated(
        Served if "endpoint" in tree else Description, tree, str(path)
    )
    return told


def _description(path: Path) -> Path:
    if path.suffix != ONNX:
        return path
    for suffix in DESCRIPTIONS:
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise UserError(
        f"{path} does not say what goes in and comes out: a description beside it, "
        f"{path.with_suffix(DESCRIPTIONS[0]).name}, has to (docs/annotators.md)"
    )


def _described(path: Path, said: Description) -> Path:
    """The weights that a description speaks of: a folder or an ONNX file."""
    if said.weights is None:
        beside = path.with_suffix(ONNX)
        if not beside.is_file():
            raise UserError(
                f"model {path}: `weights` names no file, and {beside.name} is not there"
            )
        return beside
    weights = path.parent / Path(said.weights).expanduser()
    if weights.is_file() and weights.suffix == ONNX:
        return weights
    if not weights.exists() and is_hub_name(said.weights):
        if not hub.is_pinned(said.weights):
            raise UserError(
                f"model {path}: name the commit, so that every node reads the same: "
                f"weights: {hub.pinned(said.weights)}"
            )
        weights = fetched(said.weights)
    elif not weights.is_dir():
        raise UserError(f"model {path}: weights {weights} is neither a folder nor an ONNX file")
    if not is_classifier(read_json(weights / CONFIG)):
        raise UserError(f"model {path}: weights {said.weights} is no image classifier's folder")
    return weights


def weight_files(path: Path) -> list[Path]:
    """A model's weights: one file, or the shards that its index names. UserError where there are
    none, or one is missing."""
    if path.is_file():
        said = read_description(path)
        if isinstance(said, Served):
            return []
        weights = _described(path, said)
        return [weights, *external_data(weights)] if weights.is_file() else weight_files(weights)
    folder = path
    for whole, index in ((WEIGHTS, INDEX), _TORCH):
        if (folder / index).exists():
            return _indexed(folder, index)
        if (folder / whole).exists():
            return [folder / whole]
    raise UserError(f"{folder} is no model folder: it holds no {WEIGHTS}")


def _indexed(folder: Path, index: str) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{folder / index} is not an index of weights") from None
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder} is not whole: {index} names {name}, which is not there")
    return [folder / name for name in names]


def model_revision(path: Path) -> str:
    """Content hash of all that makes the model: 12 hex digits; of a hub's, a dash and its commit."""
    digest = hashlib.sha256()
    folder = path
    if path.is_file():
        config = read_config(path)
        if isinstance(config, ServedConfig):
            return hashlib.sha256(config.served.telling.encode()).hexdigest()[:12]
        assert isinstance(config, ClassifierConfig)
        folder = config.weights
        # Neither a name nor a place changes what it tells.
        told = config.model_dump_json(exclude={"name", "weights"}, exclude_defaults=True)
        digest.update(told.encode())
    if folder.is_file():
        for file in weight_files(path):
            _add(digest, file)
        return digest.hexdigest()[:12]
    tree = read_json(folder / CONFIG)
    parts = [CONFIG, TOKENIZER, QUESTION_TOKENIZER, *([PROCESSOR] if is_classifier(tree) else [])]
    for file in [*(folder / part for part in parts), *weight_files(folder)]:
        if file.exists():
            digest.update(file.name.encode())
            _add(digest, file)
    commit = commit_of(folder)
    return digest.hexdigest()[:12] + (f"-{commit}" if commit else "")


def _add(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "sha256").digest())


def size_and_licence(path: Path) -> dict[str, Any]:
    """megabytes: of a model's weights, 0 where they lie behind an endpoint; licence: None where neither
    description nor card names one."""
    return {
        "megabytes": round(sum(file.stat().st_size for file in weight_files(path)) / 1e6, 2),
        "licence": _licence(path),
    }


def _licence(path: Path) -> str | None:
    if path.is_file():
        said = read_description(path)
        if said.licence is not None or isinstance(said, Served):
            return said.licence
        path = _described(path, said)
    return licence_of_card(path / CARD)


def licence_of_card(card: Path) -> str | None:
    """As the hub reads it from a card's head (`license`, or `license_name` where that says `other`)."""
    from huggingface_hub.repocard import metadata_load

    try:
        told = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return None
    named = told.get("license")
    if named == "other":
        named = told.get("license_name") or named
    names = named if isinstance(named, list) else [named] if named else []
    line = in_a_line(", ".join(map(str, names)), 100)
    return "".join(filter(str.isprintable, line)) or None


def content_of(revision: str) -> str:
    """Of a revision what results depend on: a hub's next commit may change a card alone."""
    return revision.partition("-")[0]
