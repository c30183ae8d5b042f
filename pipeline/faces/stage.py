"""The face stage: one segment's frames -> its tracks and the windows a model will read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.config import FacesConfig, WindowsConfig
from emolake.pipeline.faces.align import CropSpec, crop_matrix, cut, transform_points
from emolake.pipeline.faces.brought import weights_file
from emolake.pipeline.faces.cuts import ReplacedPlaces
from emolake.pipeline.faces.detector import Detector
from emolake.pipeline.faces.encoding import decode_crop, encode_crop
from emolake.pipeline.faces.identity import FaceIdentity, persons
from emolake.pipeline.faces.mtcnn import PNET_THRESHOLD, RNET_THRESHOLD, Mtcnn
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.faces.quality import Quality, quality_of
from emolake.pipeline.faces.retinaface_detector import RetinaFaceDetector
from emolake.pipeline.faces.scrfd import Scrfd
from emolake.pipeline.faces.search import FaceSearch, Look
from emolake.pipeline.faces.tracker import BridgedBox, Crop, Sighting, Track, Tracker
from emolake.pipeline.faces.windows import Window, track_end, windows_of
from emolake.pipeline.faces.yunet import YuNet
from emolake.pipeline.video.frame import TimedFrame

if TYPE_CHECKING:
    from emolake.pipeline.faces.attributes import AttributeEstimator

_THUMBNAIL = 64  # pixels
_EPSILON = 1e-6  # seconds
_ENOUGH = 2.0  # source pixels to a crop's pixel; `cut` averages what is finer


@dataclass(frozen=True)
class SegmentFaces:
    """What the stage found in one segment, as plain values for the row between stages.

    tracks, windows: structs of schema.FACES_ROW; n_dropped_tracks: those too short to keep; seen_s:
    span of the sampled frames in seconds.
    """

    tracks: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    n_dropped_tracks: int
    frames_seen: int
    seen_s: float


@dataclass
class _Seen:
    """Which frames a segment gave, and what stretch of time they stand for: each its own cell of
    `cell_s`, the first one from the segment's start and none past its end or the video's."""

    segment_start_s: float
    segment_end_s: float
    duration_s: float
    cell_s: float
    first_s: float = math.nan
    last_s: float = math.nan
    frames: int = 0

    def with_frame(self, frame: TimedFrame) -> TimedFrame:
        """Notes a frame that passes by."""
        if not self.frames:
            self.first_s = frame.time_s
        self.last_s = frame.time_s
        self.frames += 1
        return frame

    @property
    def start_s(self) -> float:
        inner = self.segment_start_s > 0 and self.first_s < self.segment_start_s + self.cell_s
        return self.segment_start_s if inner else self.first_s

    @property
    def end_s(self) -> float:
        return min(self.segment_end_s, self.duration_s, self.last_s + self.cell_s)

    @property
    def span_s(self) -> float:
        return max(self.end_s - self.start_s, 0.0) if self.frames else 0.0

    def start_of(self, track: Track) -> float:
        first = track.sightings[0].time_s
        return self.start_s if first == self.first_s else first

    def end_of(self, track: Track) -> float:
        return track_end(track, self.cell_s, self.end_s)

    def touches_seam(self, track: Track) -> bool:
        """Whether it starts or ends where this segment meets another."""
        return (
            0 < self.segment_start_s == self.start_of(track)
            or self.end_of(track) == self.segment_end_s
        )


class FaceStage:
    """Detects, tracks and cuts. Holds the detector, so make one a process and use it often.

    needs: the views of a window to make; features are those of MTCNN's O-Net. device: where the
    detector runs, as torch names it.
    """

    def __init__(
        self,
        faces: FacesConfig,
        windows: WindowsConfig,
        needs: Needs,
        sample_fps: float,
        device: str = "cpu",
    ) -> None:
        self.faces = faces
        self.windows = windows
        self.needs = needs
        self.sample_fps = sample_fps
        detector = make_detector(faces, device)
        extra = needs.features and not isinstance(detector, Mtcnn)
        self.identity = FaceIdentity() if faces.identity == "dlib" else None
        self.estimator = _estimator(faces, device)
        self.search = FaceSearch(detector, faces, Mtcnn(device=device) if extra else None)

    def __call__(
        self,
        frames: Iterable[TimedFrame],
        start_s: float = 0.0,
        end_s: float = math.inf,
        duration_s: float = math.inf,
    ) -> SegmentFaces:
        """frames: those of the segment [start_s, end_s) in time order; duration_s: where the video
        ends."""
        seen = _Seen(start_s, end_s, duration_s, 1 / self.sample_fps)
        return self._rows(self.tracks(map(seen.with_frame, frames)), seen)

    def tracks(self, frames: Iterable[TimedFrame]) -> list[Track]:
        """All tracks of the frames, however short, with the crops of their sightings."""
        tracker = Tracker(
            min_score=self.faces.min_score,
            min_iou=self.faces.min_iou,
            max_gap_seconds=self.faces.max_gap_seconds,
        )
        replaced = ReplacedPlaces()
        for look in self.search(frames):
            faces = look.found()
            height, width = look.cells.shape[:2]
            in_cells = faces.boxes * np.tile(
                (width / look.frame.width, height / look.frame.height), 2
            )
            others = replaced(look.cells, in_cells, cut=look.cut)
            for track in tracker.update(look.frame.time_s, faces, cut=look.cut, replaced=others):
                track.size = (look.frame.width, look.frame.height)
                self._cut(look, track.sightings[-1])
                if self.identity is not None:
                    self.identity.look(look.full(), track.sightings[-1], track)
                if self.estimator is not None:
                    self.estimator.look(look.full(), track.sightings[-1], track)
        return tracker.finish()

    def _cut(self, look: Look, sighting: Sighting) -> None:
        """The views of a face: cut now, since the frame will be gone."""
        sighting.crops = [self._crop(look, sighting, view.spec) for view in self.needs.crops]
        if not sighting.crops and self.faces.store_thumbnails:
            sighting.crops = [self._crop(look, sighting, CropSpec(_THUMBNAIL))]
        sighting.frames = [look.squashed(view.size) for view in self.needs.frames]

    def _crop(self, look: Look, sighting: Sighting, spec: CropSpec) -> Crop:
        matrix = crop_matrix(sighting.box, sighting.landmarks, spec)
        shrunk = look.frame.width / look.picture.shape[1]
        crop_pixel = 1 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))
        if crop_pixel >= _ENOUGH * shrunk:
            # The frame at detection width shows the face finely enough, and is at hand.
            crop = cut(look.picture, matrix * (shrunk, shrunk, 1), spec.size)
        else:
            crop = cut(look.full(), matrix, spec.size)
        points = transform_points(sighting.landmarks, matrix)
        # Pixel centres are whole numbers, so the crop's left edge stands at -0.5.
        landmarks = (points + np.float32(0.5)) / np.float32(spec.size)
        return Crop(encode_crop(crop, self.windows.crop_format), landmarks)

    def _rows(self, tracks: list[Track], seen: _Seen) -> SegmentFaces:
        track_rows: list[dict[str, Any]] = []
        window_rows: list[dict[str, Any]] = []
        kept = [track for track in tracks if self._lasts(track, seen)]
        numbers = persons(kept) if self.identity else [None] * len(kept)
        for track_id, (track, person) in enumerate(zip(kept, numbers, strict=True)):
            start, end = seen.start_of(track), seen.end_of(track)
            boxes = np.stack([s.box for s in track.sightings])
            track_rows.append(
                {
                    "track_id": track_id,
                    "start_s": start,
                    "end_s": end,
                    "n_detections": len(track.sightings),
                    "n_interpolated": len(track.bridged),
                    "mean_score": float(np.mean([s.score for s in track.sightings])),
                    "mean_box": _fractions(boxes.mean(0), track.size),
                    "person_id": person,
                    "path": _path(track),
                    "thumbnail": self._thumbnail(track),
                }
                | self._attributes(track)
            )
            for window in windows_of(track, start, end, self.windows):
                window_rows.append(
                    {
                        "track_id": track_id,
                        "window": window.index,
                        "start_s": window.start_s,
                        "end_s": window.end_s,
                        "n_interpolated": window.n_interpolated,
                        "bbox": _fractions(window.middle.box, track.size),
                        "quality": self._quality(window).row,
                        "n_frames": len(window.sightings),
                        "features": [s.feature for s in window.sightings],
                    }
                    | self._views(window)
                )
        dropped = len(tracks) - len(kept)
        return SegmentFaces(track_rows, window_rows, dropped, seen.frames, seen.span_s)

    def _quality(self, window: Window) -> Quality:
        crops = window.middle.crops
        return quality_of(
            [sighting.box for sighting in window.sightings],
            [sighting.landmarks for sighting in window.sightings],
            [sighting.score for sighting in window.sightings],
            decode_crop(crops[0].picture) if crops else None,
        )

    def _views(self, window: Window) -> dict[str, Any]:
        """The window's crops and frames, one list a view."""
        crops, frames = [], []
        for k, crop_view in enumerate(self.needs.crops):
            shown = [window.middle] if crop_view.middle_only else window.sightings
            seen = [sighting.crops[k] for sighting in shown]
            crops.append(
                {
                    "pictures": [crop.picture for crop in seen],
                    "landmarks": [crop.landmarks.ravel() for crop in seen],
                }
            )
        for k, frame_view in enumerate(self.needs.frames):
            shown = [window.middle] if frame_view.middle_only else window.sightings
            frames.append([sighting.frames[k] for sighting in shown])
        return {"crops": crops, "frames": frames}

    def _thumbnail(self, track: Track) -> bytes | None:
        """The surest sighting's crop as JPEG, blurred unless the user wants to see it."""
        if not self.faces.store_thumbnails:
            return None
        best = max(track.sightings, key=lambda sighting: sighting.score)
        picture = cv2.resize(decode_crop(best.crops[0].picture), (_THUMBNAIL, _THUMBNAIL))
        if self.faces.blur_thumbnails:
            picture = cv2.GaussianBlur(picture, (0, 0), _THUMBNAIL / 8)
        return encode_crop(np.asarray(picture, np.uint8), "jpeg")

    def _attributes(self, track: Track) -> dict[str, str | None]:
        if self.estimator is None:
            return {}
        from emolake.pipeline.faces.attributes import attributes_of

        return attributes_of(track)

    def _lasts(self, track: Track, seen: _Seen) -> bool:
        """Whether a track is long enough to keep. One at a segment boundary may go on beyond it, and
        a video of a single frame has no length."""
        if seen.frames == 1 or seen.touches_seam(track):
            return True
        length = seen.end_of(track) - seen.start_of(track)
        return length >= self.faces.min_track_seconds - _EPSILON


def _estimator(faces: FacesConfig, device: str) -> AttributeEstimator | None:
    if faces.attributes is None:
        return None
    # It brings `transformers`, which takes seconds to import and which most runs do without.
    from emolake.pipeline.faces.attributes import AttributeEstimator

    return AttributeEstimator(Path(faces.attributes), device)


def make_detector(faces: FacesConfig, device: str = "cpu") -> Detector:
    """The configured detector. UserError: weights that are missing or not this detector's."""
    if faces.detector == "mtcnn":
        thresholds = (PNET_THRESHOLD, RNET_THRESHOLD, faces.weak_score)
        return Mtcnn(min_face=faces.min_face, thresholds=thresholds, device=device)
    weights = weights_file(faces.detector, faces.weights)
    if faces.detector == "yunet":
        return YuNet(weights, faces.weak_score)
    if faces.detector == "scrfd":
        return Scrfd(weights, faces.weak_score, device)
    return RetinaFaceDetector(
        weights, faces.preprocess, faces.weak_score, device=device, precision=faces.precision
    )


def _path(track: Track) -> list[dict[str, Any]]:
    return [
        {"time_s": place.time_s, "interpolated": isinstance(place, BridgedBox)}
        | _fractions(place.box, track.size)
        for place in track.places()
    ]


def _fractions(box: NDArray[np.float32], size: tuple[int, int]) -> dict[str, float]:
    width, height = size
    clipped = np.clip(box / np.array([width, height, width, height], np.float32), 0, 1)
    return dict(zip(("x1", "y1", "x2", "y2"), clipped.tolist(), strict=True))
