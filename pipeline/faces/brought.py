"""Weights that the user brings or installs. Imports no torch: checked before any work starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from emolake.pipeline.errors import UserError


def checkpoint_file(path: Path) -> Path:
    """`path` if it is there; else a UserError that says what to download and from whom."""
    if not path.is_file():
        raise UserError(
            f"faces.weights: {path} does not exist; download RetinaFace weights from"
            " ternaus/retinaface (ResNet-50, faces.preprocess=retinaface-pytorch) or"
            " biubug6/Pytorch_Retinaface (faces.preprocess=biubug6) and name the file"
        )
    return path


def identity_models() -> Path:
    """Folder of the weights. UserError where the packages are missing; imports neither."""
    spec = importlib.util.find_spec("face_recognition_models")
    if importlib.util.find_spec("dlib") is None or spec is None or not spec.origin:
        raise UserError("faces.identity=dlib needs more packages: pip install 'emolake[identity]'")
    return Path(spec.origin).parent / "models"
