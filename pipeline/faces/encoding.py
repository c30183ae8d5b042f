"""Pictures as bytes: how crops and frames travel between stages."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.faces.detector import Frame

_JPEG_QUALITY = 95


def encode_crop(crop: Frame, crop_format: str) -> bytes:
    """An RGB crop as PNG (lossless) or JPEG bytes."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if crop_format == "jpeg" else []
    done, data = cv2.imencode(f".{crop_format}", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), settings)
    if not done:
        raise ValueError(f"cannot encode a crop as {crop_format}")
    return data.tobytes()


def decode_crop(data: bytes) -> Frame:
    """The RGB crop (S, S, 3) uint8 that `encode_crop` took."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("not an encoded crop")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
