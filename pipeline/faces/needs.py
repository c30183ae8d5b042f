"""What annotators read of a window, so that the face stage makes just that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any

from emolake.pipeline.faces.align import CropSpec


@dataclass(frozen=True)
class CropView:
    """Aligned face crops, of each frame of a window or of its middle frame alone."""

    spec: CropSpec
    middle_only: bool = False


@dataclass(frozen=True)
class FrameView:
    """Whole frames, squashed to size x size pixels, of each frame of a window or of its middle one."""

    size: int
    middle_only: bool = False


@dataclass(frozen=True)
class Needs:
    """features: the detector's global face feature per frame; sound: the segment's audio track, 16 kHz
    mono; transcript:
    what is said, with times."""

    crops: tuple[CropView, ...] = ()
    frames: tuple[FrameView, ...] = ()
    features: bool = False
    sound: bool = False
    transcript: bool = False

    @property
    def faces(self) -> bool:
        """Whether faces have to be found at all."""
        return bool(self.crops or self.frames or self.features)

    def bytes_per_frame(self) -> int:
        """About how many bytes a face takes in one frame, as it travels: PNG halves a crop, JPEG makes a
        frame a tenth."""
        crops = sum(3 * view.spec.size**2 // 2 for view in self.crops if not view.middle_only)
        frames = sum(3 * view.size**2 // 10 for view in self.frames if not view.middle_only)
        return crops + frames

    def union(self, other: Needs) -> Needs:
        return Needs(
            crops=(*self.crops, *(v for v in other.crops if v not in self.crops)),
            frames=(*self.frames, *(v for v in other.frames if v not in self.frames)),
            features=self.features or other.features,
            sound=self.sound or other.sound,
            transcript=self.transcript or other.transcript,
        )

    @classmethod
    def of_all(cls, needs: Iterable[Needs]) -> Needs:
        """What several annotators need together; views in the order of first mention."""
        return reduce(cls.union, needs, cls())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Needs:
        plain = cls(features=told["features"], sound=told["sound"], transcript=told["transcript"])
        crops = tuple(CropView(CropSpec(**v["spec"]), v["middle_only"]) for v in told["crops"])
        return replace(plain, crops=crops, frames=tuple(FrameView(**v) for v in told["frames"]))
