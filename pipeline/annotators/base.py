"""The one interface between the annotation stage and any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config import AnnotatorConfig


@dataclass(frozen=True)
class WindowInput:
    """What a model sees of one window of T frames.

    crops: T encoded RGB pictures of the annotator's crop size; landmarks: (T, 5, 2) float32 as
    fractions of the crop; features: (T, D) float32 global face features; attributes: age, gender
    and race where known.
    """

    crops: list[bytes]
    landmarks: NDArray[np.float32]
    features: NDArray[np.float32]
    attributes: Mapping[str, str]

    @classmethod
    def of(cls, window: Mapping[str, Any], attributes: Mapping[str, str]) -> WindowInput:
        """From a window struct of schema.FACES_ROW."""
        return cls(
            crops=window["crops"],
            landmarks=np.asarray(window["landmarks"], np.float32).reshape(-1, 5, 2),
            features=np.asarray(window["features"], np.float32),
            attributes=attributes,
        )


@dataclass(frozen=True)
class Annotation:
    """scores: probability of each label of the label set, in its order; they sum to 1."""

    scores: dict[str, float]

    @property
    def emotion(self) -> str:
        return max(self.scores, key=lambda label: self.scores[label])

    @property
    def confidence(self) -> float:
        return self.scores[self.emotion]


class Annotator(Protocol):
    """A loaded model. name and revision stand in every row it makes."""

    name: str
    revision: str

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        """One annotation a window, in order; the result of a window depends on it alone."""
        ...


def load_annotator(model: str, config: AnnotatorConfig, device: str) -> Annotator:
    """The annotator of an embedded model's name or a model folder, its weights on `device`."""
    # Torch and transformers take seconds to import; only who loads a model pays for them.
    from pipeline.annotators.emo_llama import EmoLlamaAnnotator

    return EmoLlamaAnnotator(model, config, device)
