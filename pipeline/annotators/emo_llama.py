"""EMO-LLaMA (and plain LLaMA-VID) as an annotator: batched label scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from emolake.pipeline.annotators.answers import by_answer
from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.annotators.batches import CompiledWhereItPays, MicroBatches
from emolake.pipeline.annotators.language_side import LanguageSide
from emolake.pipeline.annotators.pixels import Normaliser, decoded, for_device, on_device
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.faces.align import MIRRORED_POINTS
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.config import EmoLlamaConfig
from emolake.pipeline.models.emo_llama import EmoLlama, EncodedFrames
from emolake.pipeline.models.folder import LoadedModel, load_model
from emolake.pipeline.models.precision import computing
from emolake.pipeline.models.prompts import IMAGE_TOKEN, PromptTokens, Told
from emolake.pipeline.models.scoring import LabelTrie
from emolake.pipeline.models.transfer import sent


@dataclass(frozen=True)
class Pictures:
    """B windows of T frames, ready for the device. pixels: (B * T, S, S, 3) uint8; features: (B, T, D);
    landmarks: (B, T, 5, 2)."""

    pixels: Tensor
    features: Tensor
    landmarks: Tensor

    def mirrored(self) -> Self:
        """The same faces in a mirror."""
        points = torch.stack([self.landmarks[:, :, k] for k in MIRRORED_POINTS], dim=2)
        points[..., 0] = 1 - points[..., 0]
        return replace(self, pixels=self.pixels.flip(2), landmarks=points)

    def on(self, device: torch.device) -> Self:
        parts = (self.pixels, self.features, self.landmarks)
        return type(self)(*(part.to(device, non_blocking=True) for part in parts))


class EmoLlamaAnnotator:
    """Windows of equal length and prompt share a forward pass, so none is ever padded and the scores of a
    window do not depend on its company. The frames of all of them go through the tower at once."""

    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:
        self._take(load_model(model, device, config.precision), config, device)

    @classmethod
    def around(
        cls,
        loaded: LoadedModel[EmoLlamaConfig, EmoLlama],
        config: AnnotatorConfig,
        device: str = "cpu",
    ) -> Self:
        """An annotator of a model that is in memory already, on `device`."""
        made = cls.__new__(cls)
        made._take(loaded, config, device)
        return made

    def _take(
        self, loaded: LoadedModel[EmoLlamaConfig, EmoLlama], config: AnnotatorConfig, device: str
    ) -> None:
        self.name = loaded.name
        self.revision = loaded.revision
        self.network = loaded.network
        self.model_config = loaded.config
        self.needs = loaded.config.needs
        (self.view,) = self.needs.crops
        self.options = config
        self.prompter = loaded.prompter
        self.language = LanguageSide(loaded.network.language, loaded.prompter, config)
        self.labels = label_set(config.label_set or loaded.config.label_set)
        self.use_attributes = config.use_attributes and loaded.config.attributes
        self.device = torch.device(device)
        self.batches = MicroBatches(config.micro_batch, self.device, whole=config.compile)
        processor = loaded.config.processor
        self.normalise = Normaliser(processor.mean, processor.std, self.device)
        self.encode: Callable[..., EncodedFrames] = loaded.network.encode_frames
        if config.compile:
            self.encode = CompiledWhereItPays(self.encode)

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        out: list[Annotation | None] = [None] * len(windows)
        groups: dict[tuple[int, Told], list[int]] = {}
        for i, window in enumerate(windows):
            frames = len(window.crops[self.view].pictures)
            groups.setdefault((frames, self._told(window)), []).append(i)
        for (_, told), members in groups.items():
            prompt = self.prompter.emotion(self.labels, dict(told.attributes), told.transcript)
            forward = partial(self.forward, prompt=prompt, trie=LabelTrie.of(prompt.labels))
            made = self.batches.run([windows[i] for i in members], self.prepared, forward)
            for i, annotation in zip(members, made, strict=True):
                out[i] = annotation
        return [annotation for annotation in out if annotation is not None]

    def _told(self, window: WindowInput) -> Told:
        """What of a window's context this model was tuned to read."""
        attributes = tuple(sorted(window.attributes.items())) if self.use_attributes else ()
        transcript = window.transcript if self.model_config.transcript else None
        return Told(attributes=attributes, transcript=transcript)

    def prepared(self, batch: Sequence[WindowInput]) -> Pictures:
        views = [window.crops[self.view] for window in batch]
        pictures = decoded((crop for view in views for crop in view.pictures), self.device)
        return Pictures(
            pixels=for_device(np.stack(pictures), self.device),
            features=for_device(np.stack([w.features for w in batch]), self.device),
            landmarks=for_device(np.stack([view.landmarks for view in views]), self.device),
        )

    @torch.inference_mode()
    def forward(self, given: Pictures, prompt: PromptTokens, trie: LabelTrie) -> list[Annotation]:
        """Windows of equal length."""
        with computing(self.options.precision, self.device):
            return self._told_of(given, prompt, trie)

    def _told_of(self, given: Pictures, prompt: PromptTokens, trie: LabelTrie) -> list[Annotation]:
        beginning = prompt.ids[: prompt.ids.index(IMAGE_TOKEN)]
        given = given.on(self.device)
        prefill = self.language.read(beginning, self.embeds(given, prompt))
        temperature = self.model_config.temperature
        scores = self.language.scores(prefill, trie, temperature)
        if self.options.flip:
            other = self.language.read(beginning, self.embeds(given.mirrored(), prompt))
            both = zip(scores, self.language.scores(other, trie, temperature), strict=True)
            scores = [[(a + b) / 2 for a, b in zip(*rows, strict=True)] for rows in both]
        words: list[str | None] = [None] * len(scores)
        if self.options.describe or self.options.read_answer:
            words = list(self.language.written(prefill))
        made = []
        for row, answer in zip(scores, words, strict=True):
            told, absent = dict(zip(self.labels, row, strict=True)), list[str]()
            if self.options.read_answer:
                told, absent = by_answer(told, answer)
            described = answer if self.options.describe else None
            made.append(Annotation(told, description=described, absent=absent or None))
        return made

    def embeds(self, given: Pictures, prompt: PromptTokens) -> Tensor:
        """(B, S, D): prompts of windows of equal length with their visual tokens in place."""
        batch, frames = given.features.shape[:2]
        question = sent(torch.tensor(prompt.question), self.device)
        encoded = self.encode(self._pixels(given.pixels), question)
        tokens = encoded.frame_tokens.unflatten(0, (batch, frames))
        visual = self.network.visual_tokens(tokens, given.features, given.landmarks)
        return self.network.splice(prompt.ids, visual)

    def _pixels(self, pictures: Tensor) -> Tensor:
        """(N, 3, S, S) float32, normalised; gray in three equal channels where so configured."""
        pixels = on_device(pictures, self.device)
        if self.model_config.processor.grayscale:
            # Rec. 601 luma rounded to whole levels, as training's OpenCV conversion gives it.
            weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            pixels = (pixels * weights).sum(1, keepdim=True).round().expand(-1, 3, -1, -1)
        return self.normalise(pixels).contiguous(memory_format=torch.channels_last)
