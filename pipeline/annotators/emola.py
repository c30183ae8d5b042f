"""EmoLA as an annotator: one picture of the face, and the features of its landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emolake.pipeline.annotators.answers import by_answer, read_action_units
from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.annotators.batches import MicroBatches
from emolake.pipeline.annotators.language_side import LanguageSide
from emolake.pipeline.annotators.onnx import OnnxNetwork
from emolake.pipeline.annotators.pixels import Normaliser, decoded, for_device, on_device
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.catalog import model_path, model_revision
from emolake.pipeline.models.config import EmolaConfig
from emolake.pipeline.models.emola import Emola
from emolake.pipeline.models.folder import load_network, read_prompter
from emolake.pipeline.models.precision import computing
from emolake.pipeline.models.prompts import IMAGE_TOKEN, SYSTEM
from emolake.pipeline.models.scoring import LabelTrie, Prefill
from emolake.pipeline.video.frame import Frame

EMOTION_QUESTION = "What is the emotion of this face?"
ACTION_UNIT_QUESTION = "In this face, what are the discernible action units?"
_LANDMARK_SIDE = 192


@dataclass(frozen=True)
class Faces:
    """What can be made ready without the device. pixels: (B, S, S, 3) uint8; landmarks: (B, L) float32."""

    pixels: Tensor
    landmarks: Tensor


class EmolaAnnotator:
    """Label scores as everywhere; in words, and action units, where asked for."""

    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:
        folder = model_path(model)
        self.config = EmolaConfig.read(folder)
        self.options = config
        self.name, self.revision = self.config.name, model_revision(folder)
        self.needs = self.config.needs
        self.device = torch.device(device)
        self.network = load_network(folder, lambda: Emola(self.config), device, config.precision)
        self.prompter = read_prompter(folder)
        self.landmarks = LandmarkNetwork(config.landmark_network, self.config.landmark_dim)
        self.labels = label_set(config.label_set or self.config.label_set)
        self.batches = MicroBatches(config.micro_batch, self.device)
        self.language = LanguageSide(self.network.language, self.prompter, config)
        self.emotion_ids = self._prompt(EMOTION_QUESTION)
        self.unit_ids = self._prompt(ACTION_UNIT_QUESTION)
        self.trie = LabelTrie.of(tuple(self.prompter.answer(label) for label in self.labels))
        processor = self.config.processor
        self.normalise = Normaliser(processor.mean, processor.std, self.device)

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        return list(self.batches.run(windows, self.prepared, self.forward))

    def prepared(self, batch: Sequence[WindowInput]) -> Faces:
        pictures = decoded((w.crops[self.config.crop].pictures[0] for w in batch), self.device)
        return Faces(
            pixels=for_device(np.stack(pictures), self.device),
            landmarks=for_device(self.landmarks(pictures), self.device),
        )

    @torch.inference_mode()
    def forward(self, given: Faces) -> list[Annotation]:
        with computing(self.options.precision, self.device):
            return self._told_of(given)

    def _told_of(self, given: Faces) -> list[Annotation]:
        pixels = self.normalise(on_device(given.pixels, self.device))
        features = given.landmarks.to(self.device, non_blocking=True)
        visual = self.network.visual_tokens(pixels, features)
        prefill = self._read(self.emotion_ids, visual)
        scores = self.language.scores(prefill, self.trie, self.config.temperature)
        answers: list[str | None] = [None] * len(scores)
        units: list[list[str] | None] = [None] * len(scores)
        if self.options.describe or self.options.read_answer:
            answers = list(self.language.written(prefill))
        if self.options.action_units:
            named = self.language.written(self._read(self.unit_ids, visual))
            units = [read_action_units(answer) for answer in named]
        made = []
        for row, words, found in zip(scores, answers, units, strict=True):
            told, absent = dict(zip(self.labels, row, strict=True)), list[str]()
            if self.options.read_answer:
                told, absent = by_answer(told, words)
            described = words if self.options.describe else None
            made.append(
                Annotation(told, description=described, action_units=found, absent=absent or None)
            )
        return made

    def _read(self, prompt: tuple[int, ...], visual: Tensor) -> Prefill:
        beginning = prompt[: prompt.index(IMAGE_TOKEN)]
        return self.language.read(beginning, self.network.splice(prompt, visual))

    def _prompt(self, question: str) -> tuple[int, ...]:
        """LLaVA's v1 template with EmoLA's order: the question, then the picture."""
        before = self.prompter.encode(f"{SYSTEM} USER: {question}\n")
        return (self.prompter.bos, *before, IMAGE_TOKEN, *self.prompter.encode(" ASSISTANT:"))


class LandmarkNetwork:
    """InsightFace's 2d106det: a face's picture -> its flat output, which is EmoLA's feature."""

    def __init__(self, path: str | None, dim: int) -> None:
        if path is None:
            raise UserError("EmoLA reads landmark features; name annotator.landmark_network=FILE")
        self._network = OnnxNetwork(path, "annotator.landmark_network")
        self._dim = dim

    def __call__(self, pictures: list[Frame]) -> NDArray[np.float32]:
        """N RGB pictures of a face -> (N, dim) float32. As published: 192 x 192, BGR, 0..1."""
        side = (_LANDMARK_SIDE, _LANDMARK_SIDE)
        small = [cv2.cvtColor(cv2.resize(p, side), cv2.COLOR_RGB2BGR) for p in pictures]
        blobs = (np.stack(small).astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
        features = self._network(blobs)
        if features.shape[1] != self._dim:
            raise ValueError(
                f"annotator.landmark_network gives {features.shape[1]} values, the model reads {self._dim}"
            )
        return features
