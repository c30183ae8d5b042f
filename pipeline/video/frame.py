"""What a decoded picture is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""One picture, (H, W, 3) uint8 RGB."""
