"""Which models there are: embedded ones by name, folders by path. Imports no torch.

A model folder holds config.json, model.safetensors, tokenizer.json, where the Q-Former has another
one question_tokenizer.json, and a README.md that is the model card.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded"
DEFAULT_MODEL = "emo-llama-tiny"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
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
        for part in (CONFIG, WEIGHTS):
            if not (path / part).exists():
                raise UserError(f"{path} is no model folder: it holds no {part}")
        return path
    known = ", ".join(embedded_models())
    raise UserError(
        f"model {name_or_path!r} is neither an embedded model ({known}) nor a folder on this machine"
    )


def model_revision(folder: Path) -> str:
    """Content hash of all that makes the model: 12 hex digits."""
    digest = hashlib.sha256()
    for part in (CONFIG, TOKENIZER, QUESTION_TOKENIZER, WEIGHTS):
        path = folder / part
        if path.exists():
            digest.update(part.encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
