"""YuNet (Wu et al. 2023, doi 10.1007/s11633-023-1423-y): OpenCV's own network, decoded by OpenCV.

cv2.FaceDetectorYN takes files of fixed and of open size alike at whatever size is set, pads it to whole
strides and decodes what the network tells; a net of cv2.dnn would leave that to us and run no faster, since
published files take one picture at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.faces.detector import Detections
from emolake.pipeline.faces.refine import refined
from emolake.pipeline.video.frame import Frame

NMS_THRESHOLD = 0.3  # FaceDetectorYN's defaults
_BEFORE_NMS = 5000
_SMALLEST = 32  # pixels: one cell of the coarsest level


class YuNet:
    """Runs a file of OpenCV's model zoo over frames, one after the other, at the size they come in."""

    feature_dim = 0

    def __init__(self, weights: Path, min_score: float) -> None:
        told = cv2.utils.logging.getLogLevel()
        # OpenCV 5 warns of a default of its own, and what else it says stands in the error.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(weights), "", (_SMALLEST, _SMALLEST), min_score, NMS_THRESHOLD, _BEFORE_NMS
            )
            # A network with other outputs is not told from YuNet before it has run.
            self._network.detect(np.zeros((_SMALLEST, _SMALLEST, 3), np.uint8))
        except cv2.error as error:
            raise UserError(
                f"faces.weights: {weights} is no YuNet of 2023 or later, such as "
                f"face_detection_yunet_2023mar.onnx: {in_a_line(error, 200)}"
            ) from None
        finally:
            cv2.utils.logging.setLogLevel(told)

    def __call__(self, frames: list[Frame]) -> list[Detections]:
        if not frames:
            return []
        height, width = frames[0].shape[:2]
        self._network.setInputSize((width, height))
        return [
            _detections(self._network.detect(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1])
            for frame in frames
        ]

    def refine(
        self, frames: list[Frame], boxes: NDArray[np.float32], owner: NDArray[np.intp]
    ) -> Detections:
        return refined(self, frames, boxes, owner)


def _detections(rows: NDArray[Any] | None) -> Detections:
    """Rows (N, 15) float32 of FaceDetectorYN: corner, sides, the person's right eye, left eye, nose, right
    and left mouth corner (right is at the smaller x of an upright face), score; best first."""
    if rows is None:
        return Detections.none()
    corner, sides = rows[:, :2], rows[:, 2:4]
    boxes = np.concatenate([corner, corner + sides], 1)
    points = rows[:, 4:14].reshape(-1, 5, 2)
    return Detections(boxes, rows[:, 14], points, np.zeros((len(rows), 0), np.float32))
