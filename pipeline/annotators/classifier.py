"""Image classifiers as annotators: each crop of a window is classified, a window's scores are their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.annotators.batches import MicroBatches
from emolake.pipeline.annotators.onnx import described_network
from emolake.pipeline.annotators.pixels import Normaliser, for_device, on_device
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.faces.encoding import decode_crop
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.catalog import model_path, model_revision, read_config
from emolake.pipeline.models.classifier import NUMBERS, ClassifierConfig
from emolake.pipeline.models.precision import computing

_SHOWN = 0.5
"""Probability from which on an action unit is told."""


@dataclass(frozen=True)
class Crops:
    """Of some windows, ready for the device. counts: crops of each window; pixels: (N, S, S, 3) uint8."""

    counts: list[int]
    pixels: Tensor


class ClassifierAnnotator:
    """Probabilities of classes that mean one label are added; classes that mean none of the set that is
    asked for are left out, and the others' probabilities sum to 1."""

    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:
        path = model_path(model)
        told = read_config(path)
        if not isinstance(told, ClassifierConfig):
            raise UserError(f"model {model} is no image classifier")
        self.config, self.options = told, config
        self.name, self.revision = told.name, model_revision(path)
        self.needs = told.needs
        self.device = torch.device(device)
        self.labels = label_set(config.label_set or told.label_set)
        self.columns = told.columns(config.label_set)
        self.batches = MicroBatches(config.micro_batch, self.device)
        self.normalise = Normaliser(told.mean, told.std, self.device)
        self.network = network(told, device)

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        return list(self.batches.run(windows, self.prepared, self.forward))

    def prepared(self, batch: Sequence[WindowInput]) -> Crops:
        of_each = [window.crops[self.config.crop].pictures for window in batch]
        pictures = np.stack([decode_crop(data) for crops in of_each for data in crops])
        if self.config.channels == "bgr":
            pictures = np.ascontiguousarray(pictures[..., ::-1])
        return Crops([len(crops) for crops in of_each], for_device(pictures, self.device))

    @torch.inference_mode()
    def forward(self, given: Crops) -> list[Annotation]:
        pixels = self.normalise(on_device(given.pixels, self.device))
        with computing(self.options.precision, self.device):
            told = self.network(pixels).float()
        if told.shape[1] != len(self.config.classes):
            raise ValueError(
                f"model {self.name} gives {told.shape[1]} values and {len(self.config.classes)} are described"
            )
        scores = self._scores(told)
        if not bool(scores.isfinite().all()):
            raise ValueError(f"model {self.name} gives scores that are no numbers")
        means = [part.mean(0) for part in scores.split(given.counts)]
        further = [self._further(part) for part in told.split(given.counts)]
        return [
            Annotation(dict(zip(self.labels, row.tolist(), strict=True)), **more)
            for row, more in zip(torch.stack(means).cpu(), further, strict=True)
        ]

    def _scores(self, told: Tensor) -> Tensor:
        """(N, C) of the network -> (N, L) probabilities."""
        used = [column for columns in self.columns for column in columns]
        if self.config.probabilities:
            each = told[:, used].clamp_min(0)
            each = each / each.sum(-1, keepdim=True)
        else:
            each = (told[:, used] / self.config.temperature).softmax(-1)
        return torch.stack(
            [part.sum(-1) for part in each.split([len(c) for c in self.columns], dim=1)], dim=1
        )

    def _further(self, told: Tensor) -> dict[str, Any]:
        """Valence, arousal and action units where there are outputs for them; the mean over the crops."""
        found: dict[str, Any] = {}
        units = [(k, c) for k, c in enumerate(self.config.classes) if c and c.startswith("AU")]
        if units:
            values = told[:, [k for k, _ in units]]
            shown = (values if self.config.probabilities else values.sigmoid()).mean(0) >= _SHOWN
            found["action_units"] = [
                c for (_, c), on in zip(units, shown.tolist(), strict=True) if on
            ]
        for name in NUMBERS:
            if name in self.config.classes:
                found[name] = float(told[:, self.config.classes.index(name)].mean())
        return found


def network(config: ClassifierConfig, device: str) -> Callable[[Tensor], Tensor]:
    """(N, 3, S, S) float32, normalised -> (N, C). UserError where the weights cannot be read, or are not of
    the sizes described."""
    if config.weights.is_file():
        made = described_network(config, device)
        return lambda pixels: torch.from_numpy(made(pixels.cpu().numpy())).to(pixels.device)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        model, told = transformers.AutoModelForImageClassification.from_pretrained(
            config.weights, local_files_only=True, weights_only=True, output_loading_info=True
        )
    except Exception as error:  # whatever the library's loaders raise
        raise UserError(
            f"model {config.weights} cannot be loaded: {in_a_line(error, 200)}"
        ) from None
    missing = sorted(told["missing_keys"])
    if missing:
        raise UserError(f"model {config.weights} lacks {len(missing)} tensors, {missing[0]}")
    model = model.to(device).eval()
    return lambda pixels: model(pixel_values=pixels).logits
