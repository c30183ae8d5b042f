"""Detector weights that the user brings. Imports no torch: checked before any work starts."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError


def checkpoint_file(path: Path) -> Path:
    """`path` if it is there; else a UserError that says what to download and from whom."""
    if not path.is_file():
        raise UserError(
            f"faces.weights: {path} does not exist; download RetinaFace weights from"
            " ternaus/retinaface (ResNet-50, faces.preprocess=retinaface-pytorch) or"
            " biubug6/Pytorch_Retinaface (faces.preprocess=biubug6) and name the file"
        )
    return path
