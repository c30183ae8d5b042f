"""The one interface between the annotation stage and any model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.faces.needs import CropView, FrameView, Needs
from emolake.pipeline.models.catalog import model_path, read_config


@dataclass(frozen=True)
class FaceCrops:
    """T encoded RGB pictures of a view's size; landmarks: (T, 5, 2) float32 as fractions of them."""

    pictures: list[bytes]
    landmarks: NDArray[np.float32]


@dataclass(frozen=True)
class WindowInput:
    """What a model sees of one window of T frames.

    crops, frames: by the views that the annotator's needs name; features: (T, D) float32 global face
    features; attributes: age, gender and race where known; sound: (N,) int16, 16 kHz mono, of the
    window's span, None where the video has none; transcript: what is said in it.
    """

    crops: Mapping[CropView, FaceCrops]
    features: NDArray[np.float32]
    attributes: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[FrameView, list[bytes]] = field(default_factory=dict)
    sound: NDArray[np.int16] | None = None
    transcript: str | None = None

    @property
    def nbytes(self) -> int:
        """Of pictures, sound and features."""
        shown = [*(crops.pictures for crops in self.crops.values()), *self.frames.values()]
        pictures = sum(len(picture) for view in shown for picture in view)
        heard = self.sound.nbytes if self.sound is not None else 0
        return pictures + heard + self.features.nbytes

    @classmethod
    def of(
        cls, window: Mapping[str, Any], needs: Needs, attributes: Mapping[str, str]
    ) -> WindowInput:
        """From a window struct of schema.FACES_ROW that was made for `needs`."""
        return cls(
            crops={
                view: FaceCrops(
                    made["pictures"], np.asarray(made["landmarks"], np.float32).reshape(-1, 5, 2)
                )
                for view, made in zip(needs.crops, window["crops"], strict=True)
            },
            features=np.asarray(window["features"], np.float32),
            attributes=attributes,
            frames=dict(zip(needs.frames, window["frames"], strict=True)),
        )


@dataclass(frozen=True)
class Annotation:
    """scores: probability of each label of the label set, in its order; they sum to 1. The rest where
    the model gives it; transcript: where the model read one."""

    scores: dict[str, float]
    description: str | None = None
    action_units: list[str] | None = None
    valence: float | None = None
    arousal: float | None = None
    intensity: float | None = None
    sentiment: int | None = None
    transcript: str | None = None
    absent: list[str] | None = None
    """What the model reads and the window had not (it was given silence, or nothing), and answers that
    could not be read strictly."""

    @property
    def emotion(self) -> str:
        return max(self.scores, key=lambda label: self.scores[label])

    @property
    def confidence(self) -> float:
        return self.scores[self.emotion]


class Annotator(Protocol):
    """A loaded model. name and revision stand in every row it makes; needs: what it reads. Its windows
    are those of faces, or, where it needs no more than a transcript, what is said, cue by cue."""

    name: str
    revision: str
    needs: Needs

    def annotate(self, windows: list[WindowInput]) -> Sequence[Annotation | Exception]:
        """One annotation a window, in order; the result of a window depends on it alone. An exception stands
        for a window that it alone met, and is raised where it may be the batch's."""
        ...


_OF_FAMILY = {
    "emo-llama": "emo_llama:EmoLlamaAnnotator",
    "llama-vid": "emo_llama:EmoLlamaAnnotator",
    "emola": "emola:EmolaAnnotator",
    "emotion-llama": "emotion_llama:EmotionLlamaAnnotator",
    "emollm": "emollm:EmoLlmAnnotator",
    "classifier": "classifier:ClassifierAnnotator",
    "served": "served:ServedAnnotator",
}


def load_annotator(model: str, config: AnnotatorConfig, device: str) -> Annotator:
    """The annotator of a model as `model_path` takes it, its weights on `device`."""
    family = read_config(model_path(model)).family
    module, _, name = _OF_FAMILY[family].partition(":")
    # Torch and transformers take seconds to import; only who loads a model pays for them.
    kind = getattr(importlib.import_module(f"emolake.pipeline.annotators.{module}"), name)
    annotator: Annotator = kind(model, config, device)
    return annotator
