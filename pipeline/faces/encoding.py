"""Pictures as bytes: how crops and frames travel between stages."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from emolake.pipeline.errors import VideoError
from emolake.pipeline.video.frame import Frame

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


def decode_picture(encoded: bytes, max_pixels: int | None = None) -> Frame:
    """(H, W, 3) uint8 RGB of a picture file of any kind that Pillow reads. VideoError where the bytes
    are no picture, or one of more than max_pixels."""
    if not encoded:
        raise VideoError("decode_error", "the picture has 0 bytes")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise VideoError("too_large", f"a picture of {size} pixels")
            return np.asarray(image.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise VideoError("decode_error", f"not a picture: {error}") from None


def to_grayscale(picture: Frame) -> Frame:
    """RGB (H, W, 3) -> Rec. 601 luma (H, W, 1)."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]
