"""HDR and wide gamut -> BT.709: what a face looks like on the screen that models learned from.

Diffuse white is at 203 cd/m2 (ITU-R BT.2408), so what was graded for both looks the same in both; what is
brighter is rolled off. swscale's own conversion takes two seconds to set up for each size, and a fifth of a
second for each frame of 4K whatever its size is to be; this one works at the size that is asked for, which is
most often detection's (a whole frame of 4K takes twice as long as swscale's).
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.video.frame import Frame

_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273
_WHITE = 203.0  # cd/m2
_HLG_PEAK = 1000.0  # cd/m2
_SDR_GAMMA = 2.4  # BT.1886
_KNEE = 0.8  # of white: here the roll-off begins
_TO_709 = {
    9: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    12: [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],
}
"""By primaries of H.273: BT.2020 (ITU-R BT.2407) and P3 with white at D65."""
_LUMINANCE_2020 = np.array([[0.2627, 0.6780, 0.0593]], np.float32)


def is_sdr(transfer: int, primaries: int) -> bool:
    """Whether a picture of these characteristics (H.273) is near enough to BT.709 as it is."""
    return transfer not in (_PQ, _HLG) and primaries not in _TO_709


def sdr(picture: NDArray[np.uint16], transfer: int, primaries: int) -> Frame:
    """(H, W, 3) uint16 R'G'B' over its whole range -> (H, W, 3) uint8."""
    light = np.take(_light(transfer), picture)
    if transfer == _HLG:  # the system gamma of a display of 1000 cd/m2, ITU-R BT.2100
        light *= cv2.pow(cv2.transform(light, _LUMINANCE_2020), 0.2)[..., None]
        light *= np.float32(_HLG_PEAK / _WHITE)
    if primaries in _TO_709:
        light = np.asarray(
            cv2.transform(light, np.array(_TO_709[primaries], np.float32)), np.float32
        )
    if transfer in (_PQ, _HLG):
        above = light > _KNEE
        light[above] = _KNEE + (1 - _KNEE) * np.tanh((light[above] - _KNEE) / (1 - _KNEE))
    coded = cv2.pow(np.clip(light, 0, 1), 1 / _SDR_GAMMA) * 255
    return np.asarray(coded.round(), np.uint8)


@cache
def _light(transfer: int) -> NDArray[np.float32]:
    """(65536,) of each code: PQ and SDR in parts of diffuse white, HLG the scene's in parts of its peak."""
    code = np.linspace(0, 1, 1 << 16)
    if transfer == _PQ:  # SMPTE ST 2084
        root = code ** (32 / 2523)
        ratio = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
        light = 10_000 / _WHITE * ratio ** (16384 / 2610)
    elif transfer == _HLG:  # ARIB STD-B67
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        light = code**_SDR_GAMMA
    return light.astype(np.float32)
