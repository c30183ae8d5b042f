"""An annotator as somebody would add one by CONTRIBUTING's recipe: it takes bright faces for happy ones."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.annotators.batches import MicroBatches
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.encoding import decode_crop
from emolake.pipeline.faces.needs import CropView, Needs
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.catalog import model_path, model_revision
from emolake.pipeline.models.config import ModelConfig


class BrightnessConfig(ModelConfig):
    """threshold: brightness from which on a face is happy, 0 to 255."""

    family: Literal["brightness"] = "brightness"
    threshold: float = 128.0

    @property
    def crop(self) -> CropView:
        return CropView(CropSpec(32))

    @property
    def needs(self) -> Needs:
        return Needs(crops=(self.crop,))


class BrightnessAnnotator:
    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:
        path = model_path(model)
        self.config = BrightnessConfig.read(path)
        self.name, self.revision = self.config.name, model_revision(path)
        self.needs = self.config.needs
        self.labels = label_set(config.label_set or self.config.label_set)
        self.batches = MicroBatches(config.micro_batch)

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        return list(self.batches.run(windows, list, self._seen))

    def _seen(self, batch: Sequence[WindowInput]) -> list[Annotation]:
        return [Annotation(self._scores(w.crops[self.config.crop].pictures)) for w in batch]

    def _scores(self, pictures: list[bytes]) -> dict[str, float]:
        bright = np.mean([decode_crop(data).mean() for data in pictures])
        happy = 1 / (1 + np.exp(-(bright - self.config.threshold) / 16))
        rest = (1 - happy) / (len(self.labels) - 1)
        return {name: happy if name == "happiness" else rest for name in self.labels}
