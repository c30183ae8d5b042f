"""The face stage: one segment's frames -> its tracks and the windows a model will read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import FacesConfig, WindowsConfig
from pipeline.decode import TimedFrame
from pipeline.faces.align import CropSpec, crop_matrix, cut, transform_points
from pipeline.faces.cuts import CutDetector
from pipeline.faces.detector import Detections, Detector, Frame
from pipeline.faces.mtcnn import Mtcnn
from pipeline.faces.retinaface_detector import RetinaFaceDetector
from pipeline.faces.tracker import Sighting, Track, Tracker
from pipeline.faces.windows import track_end, windows_of

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class SegmentFaces:
    """What the stage found in one segment, as plain values for the row between stages.

    tracks, windows: structs of schema.FACES_ROW; seen_s: span of the sampled frames in seconds.
    """

    tracks: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    frames_seen: int
    seen_s: float


class FaceStage:
    """Detects, tracks and cuts. Holds the detector, so make one a process and use it often.

    features: the face analysis network whose features the model reads; MTCNN's O-Net, or none.
    """

    def __init__(
        self,
        faces: FacesConfig,
        windows: WindowsConfig,
        crop: CropSpec,
        sample_fps: float,
        features: str | None = "onet",
    ) -> None:
        self.faces = faces
        self.windows = windows
        self.crop = crop
        self.sample_fps = sample_fps
        self.detector: Detector
        self.feature_network: Mtcnn | None = None
        if faces.detector == "mtcnn":
            self.detector = Mtcnn(min_face=faces.min_face)
        else:
            weights = Path(faces.weights or "")
            self.detector = RetinaFaceDetector(weights, faces.preprocess, faces.min_score)
            if features == "onet":
                self.feature_network = Mtcnn()

    def __call__(self, frames: Iterable[TimedFrame], end_s: float) -> SegmentFaces:
        """frames: one segment's, in time order; end_s: where the segment or its video ends."""
        tracker = Tracker(min_iou=self.faces.min_iou, max_gap_seconds=self.faces.max_gap_seconds)
        is_cut = CutDetector(self.faces.cut_threshold)
        seen, first_s, last_s, size = 0, math.nan, math.nan, (1, 1)
        for batch in _batches(iter(frames), self.faces.batch_frames):
            small = [frame.rgb(self.faces.detect_width) for frame in batch]
            found = self._detect(small)
            for frame, picture, faces in zip(batch, small, found, strict=True):
                size = (frame.width, frame.height)
                factors = frame.width / picture.shape[1], frame.height / picture.shape[0]
                sightings = tracker.update(
                    frame.time_s, faces.scaled(*factors), cut=is_cut(picture)
                )
                if sightings:
                    self._cut_crops(frame.rgb(), sightings)
            first_s = batch[0].time_s if seen == 0 else first_s
            last_s = batch[-1].time_s
            seen += len(batch)
        span = min(last_s + 1 / self.sample_fps, end_s) - first_s if seen else 0.0
        bound = min(end_s, last_s + 1 / self.sample_fps) if seen else end_s
        return self._rows(tracker.finish(), bound, size, seen, max(span, 0.0))

    def _detect(self, pictures: list[Frame]) -> list[Detections]:
        """Detections that pass score and sanity; a batch may change size in mid-video."""
        out: list[Detections] = []
        start = 0
        for i in range(1, len(pictures) + 1):
            if i == len(pictures) or pictures[i].shape != pictures[start].shape:
                out += self.detector(pictures[start:i])
                start = i
        good = [faces.select(plausible(faces, self.faces.min_score)) for faces in out]
        if self.feature_network is None:
            return good
        return [self._described(p, f) for p, f in zip(pictures, good, strict=True)]

    def _described(self, picture: Frame, faces: Detections) -> Detections:
        """The faces with O-Net's feature, for a detector that has none of its own."""
        assert self.feature_network is not None
        if not len(faces):
            return faces
        owner = np.zeros(len(faces), np.intp)
        told = self.feature_network.describe_boxes([picture], faces.boxes, owner)
        return replace(faces, features=told.features)

    def _cut_crops(self, picture: Frame, sightings: list[Sighting]) -> None:
        for sighting in sightings:
            matrix = crop_matrix(sighting.box, sighting.landmarks, self.crop)
            crop = cut(picture, matrix, self.crop.size)
            sighting.crop = encode_crop(crop, self.windows.crop_format)
            points = transform_points(sighting.landmarks, matrix)
            # Pixel centres are whole numbers, so the crop's left edge stands at -0.5.
            sighting.crop_landmarks = (points + np.float32(0.5)) / np.float32(self.crop.size)

    def _rows(
        self, tracks: list[Track], end_s: float, size: tuple[int, int], seen: int, span: float
    ) -> SegmentFaces:
        track_rows: list[dict[str, Any]] = []
        window_rows: list[dict[str, Any]] = []
        for track in tracks:
            first, last = track.sightings[0], track.sightings[-1]
            end = track_end(track, self.sample_fps, end_s)
            if end - first.time_s < self.faces.min_track_seconds - 1e-6 and seen > 1:
                continue
            track_id = len(track_rows)
            boxes = np.stack([s.box for s in track.sightings])
            track_rows.append(
                {
                    "track_id": track_id,
                    "start_s": first.time_s,
                    "end_s": max(end, last.time_s),
                    "n_detections": len(track.sightings),
                    "mean_score": float(np.mean([s.score for s in track.sightings])),
                    "mean_box": _fractions(boxes.mean(0), size),
                }
            )
            for window in windows_of(track, end, self.windows):
                window_rows.append(
                    {
                        "track_id": track_id,
                        "window": window.index,
                        "start_s": window.start_s,
                        "end_s": window.end_s,
                        "bbox": _fractions(window.middle.box, size),
                        "crops": [s.crop for s in window.sightings],
                        "landmarks": [s.crop_landmarks.ravel().tolist() for s in window.sightings],
                        "features": [s.feature.tolist() for s in window.sightings],
                    }
                )
        return SegmentFaces(track_rows, window_rows, seen, span)


def plausible(faces: Detections, min_score: float) -> NDArray[np.bool_]:
    """(N,) mask of detections that can be faces: score, eyes above mouth, points about the box."""
    boxes, points = faces.boxes, faces.landmarks
    side = boxes[:, 2:] - boxes[:, :2]
    inside = (points - boxes[:, None, :2]) / np.maximum(side[:, None], 1e-6)
    within = ((inside > -0.25) & (inside < 1.25)).all((1, 2))
    upright = points[:, :2, 1].mean(1) < points[:, 3:, 1].mean(1)
    mask: NDArray[np.bool_] = (faces.scores >= min_score) & within & upright
    return mask


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


def _fractions(box: NDArray[np.float32], size: tuple[int, int]) -> dict[str, float]:
    width, height = size
    clipped = np.clip(box / np.array([width, height, width, height], np.float32), 0, 1)
    return dict(zip(("x1", "y1", "x2", "y2"), clipped.tolist(), strict=True))


def _batches(frames: Iterator[TimedFrame], size: int) -> Iterator[list[TimedFrame]]:
    while batch := list(islice(frames, size)):
        yield batch
