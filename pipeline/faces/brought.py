"""Weights that the user brings or installs. Imports no torch: checked before any work starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from emolake.pipeline.errors import UserError

_PUBLISHED = {
    "retinaface": "RetinaFace weights from ternaus/retinaface (ResNet-50, "
    "faces.preprocess=retinaface-pytorch) or biubug6/Pytorch_Retinaface (faces.preprocess=biubug6)",
    "yunet": "face_detection_yunet_2023mar.onnx from opencv/opencv_zoo",
    "scrfd": "det_10g.onnx or an SCRFD *_bnkps.onnx from deepinsight/insightface",
}


def weights_file(detector: str, named: str | Path | None) -> Path:
    """The file that `detector` reads if it is there; else a UserError that says what to download and
    from whom."""
    if named is None:
        raise UserError(
            f"faces.detector={detector} needs faces.weights=FILE; download {_PUBLISHED[detector]}"
        )
    path = Path(named)
    if not path.is_file():
        raise UserError(
            f"faces.weights: {path} does not exist; download {_PUBLISHED[detector]} and name the file"
        )
    return path


def identity_models() -> Path:
    """Folder of the weights. UserError where the packages are missing; imports neither."""
    spec = importlib.util.find_spec("face_recognition_models")
    if importlib.util.find_spec("dlib") is None or spec is None or not spec.origin:
        raise UserError("faces.identity=dlib needs more packages: pip install 'emolake[identity]'")
    return Path(spec.origin).parent / "models"
