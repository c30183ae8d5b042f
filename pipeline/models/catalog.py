"""Which models there are: embedded ones by name, folders by path. Imports no torch.

A model folder holds config.json, model.safetensors (or shards with an index of the form that
`transformers` writes), tokenizer.json, where the Q-Former has another one question_tokenizer.json, and
a README.md that is the model card.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from emolake.pipeline.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded"
DEFAULT_MODEL = "emo-llama-tiny"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
INDEX = "model.safetensors.index.json"
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""As `transformers` wrote them once; text models are published so."""
TOKENIZER, QUESTION_TOKENIZER = "tokenizer.json", "question_tokenizer.json"


def embedded_models() -> list[str]:
    """Names of the models that ship with the package."""
    if not EMBEDDED.is_dir():
        return []
    return sorted(path.name for path in EMBEDDED.iterdir() if (path / CONFIG).exists())


def model_folder(name_or_path: str) -> Path:
    """The folder of an embedded model's name or of a path; UserError names what there is."""
    if name_or_path in embedded_models():
        return EMBEDDED / name_or_path
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / CONFIG).exists():
            raise UserError(f"{path} is no model folder: it holds no {CONFIG}")
        weight_files(path)
        return path
    known = ", ".join(embedded_models())
    hint = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path):
        hint = (
            "; a model of a hub is downloaded first, and its folder named: "
            f"hf download {name_or_path} --local-dir {path.name}"
        )
    raise UserError(
        f"model {name_or_path!r} is neither an embedded model ({known}) nor a folder on this machine"
        + hint
    )


def weight_files(folder: Path) -> list[Path]:
    """The folder's weights: one file, or the shards that its index names. UserError where there are
    none, or one is missing."""
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


def model_revision(folder: Path) -> str:
    """Content hash of all that makes the model: 12 hex digits."""
    digest = hashlib.sha256()
    parts = [folder / part for part in (CONFIG, TOKENIZER, QUESTION_TOKENIZER)]
    for path in [*parts, *weight_files(folder)]:
        if path.exists():
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
