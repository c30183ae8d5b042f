"""Image classifiers as annotators: each crop of a window is classified, a window's scores are their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.annotators.batches import CPU_SIZE, MicroBatches
from emolake.pipeline.annotators.onnx import described_network
from emolake.pipeline.annotators.pixels import Normaliser, decoded
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.catalog import model_path, model_revision, read_config
from emolake.pipeline.models.classifier import NUMBERS, ClassifierConfig
from emolake.pipeline.models.precision import computing
from emolake.pipeline.video.frame import Frame

_SHOWN = 0.5
"""Probability from which on an action unit is told."""


@dataclass(frozen=True)
class Crops:
    """Of some windows, ready for the device. counts: crops of each window; pixels: of all of them, as the
    network's `pixels` makes them."""

    counts: list[int]
    pixels: Tensor


class Network(Protocol):
    def pixels(self, pictures: list[Frame]) -> Tensor:
        """N RGB crops -> what the network reads; needs no device."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """-> (N, C) float32."""
        ...


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
        of_onnx = told.weights.is_file()
        # onnxruntime's memory is not torch's to measure.
        size = config.micro_batch or (CPU_SIZE if of_onnx else None)
        self.batches = MicroBatches(size, self.device)
        self.network: Network = (_OfOnnx if of_onnx else _OfFolder)(told, device)
        self._try()

    def _try(self) -> None:
        """UserError where it does not take what the face stage gives it, or gives what nobody described."""
        side = self.config.size
        blank = np.zeros((side, side, 3), np.uint8)
        try:
            width = self._told(self.network.pixels([blank])).shape[1]
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"model {self.name} does not take a crop of {side} pixels: {in_a_line(error, 200)}"
            ) from None
        if width != len(self.config.classes):
            raise UserError(
                f"model {self.name} gives {width} values and {len(self.config.classes)} are described"
            )

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        return list(self.batches.run(windows, self.prepared, self.forward))

    def prepared(self, batch: Sequence[WindowInput]) -> Crops:
        of_each = [window.crops[self.config.crop].pictures for window in batch]
        if not all(of_each):
            raise ValueError("a window without a picture cannot be classified")
        pictures = decoded((data for crops in of_each for data in crops), self.device)
        pixels = self.network.pixels(pictures)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return Crops([len(crops) for crops in of_each], pixels)

    @torch.inference_mode()
    def forward(self, given: Crops) -> list[Annotation]:
        told = self._told(given.pixels)
        scores = self._scores(told)
        means = torch.stack([part.mean(0) for part in scores.split(given.counts)]).cpu()
        further = [self._further(part) for part in told.split(given.counts)]
        numbers = [
            value for more in further for name in NUMBERS if (value := more.get(name)) is not None
        ]
        if not bool(means.isfinite().all()) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"model {self.name} gives values that are no numbers")
        return [
            Annotation(dict(zip(self.labels, row.tolist(), strict=True)), **more)
            for row, more in zip(means, further, strict=True)
        ]

    @torch.inference_mode()
    def _told(self, pixels: Tensor) -> Tensor:
        with computing(self.options.precision, self.device):
            return self.network(pixels.to(self.device, non_blocking=True)).float()

    def _scores(self, told: Tensor) -> Tensor:
        """(N, C) of the network -> (N, L) probabilities."""
        used = [column for columns in self.columns for column in columns]
        if self.config.probabilities:
            each = told[:, used].clamp_min(0) ** (1 / self.config.temperature)
            whole = each.sum(-1, keepdim=True)
            each = torch.where(whole > 0, each / whole, 1 / len(used))
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


class _OfFolder:
    """A model of `transformers` behind its own processor."""

    def __init__(self, config: ClassifierConfig, device: str) -> None:
        import transformers

        folder = config.weights
        transformers.utils.logging.set_verbosity_error()
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", **local
            )
            model, told = transformers.AutoModelForImageClassification.from_pretrained(
                folder, weights_only=True, dtype=torch.float32, output_loading_info=True, **local
            )
        except Exception as error:  # whatever the library's loaders raise
            raise UserError(f"model {folder} cannot be loaded: {in_a_line(error, 200)}") from None
        missing = sorted(told["missing_keys"])
        if missing:
            raise UserError(f"model {folder} lacks {len(missing)} tensors, {missing[0]}")
        self._model = model.to(device).eval()

    def pixels(self, pictures: list[Frame]) -> Tensor:
        made: Tensor = self._processor(pictures, return_tensors="pt")["pixel_values"]
        return made

    def __call__(self, pixels: Tensor) -> Tensor:
        told: Tensor = self._model(pixel_values=pixels).logits
        return told


class _OfOnnx:
    """onnxruntime's session; the description says how pictures go in."""

    def __init__(self, config: ClassifierConfig, device: str) -> None:
        self._network = described_network(config, device)
        self._normalise = Normaliser(config.mean, config.std, torch.device("cpu"))
        self._bgr = config.channels == "bgr"

    def pixels(self, pictures: list[Frame]) -> Tensor:
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
        return self._normalise(pixels.flip(1) if self._bgr else pixels)

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self._network(pixels.cpu().numpy())).to(pixels.device)
