"""EMO-LLaMA (and plain LLaMA-VID) as an annotator: batched label scoring."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.annotators.base import Annotation, WindowInput
from pipeline.annotators.batches import MicroBatches
from pipeline.annotators.pixels import Normaliser, stacked
from pipeline.config import AnnotatorConfig
from pipeline.faces.encoding import decode_crop
from pipeline.labels import label_set
from pipeline.models.folder import load_model
from pipeline.models.prompts import PromptTokens
from pipeline.models.scoring import LabelTrie, greedy, label_log_probabilities


class EmoLlamaAnnotator:
    """Windows of equal length and prompt share a forward pass, so none is ever padded and the
    scores of a window do not depend on its company."""

    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:
        loaded = load_model(model, device)
        self.name = loaded.name
        self.revision = loaded.revision
        self.network = loaded.network
        self.model_config = loaded.config
        self.needs = loaded.config.needs
        (self.view,) = self.needs.crops
        self.prompter = loaded.prompter
        self.labels = label_set(config.label_set or loaded.config.label_set)
        self.use_attributes = config.use_attributes and loaded.config.attributes
        self.batches = MicroBatches(config.micro_batch)
        self.device = torch.device(device)
        processor = loaded.config.processor
        self.normalise = Normaliser(processor.mean, processor.std, self.device)

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        out: list[Annotation | None] = [None] * len(windows)
        groups: dict[tuple[int, tuple[tuple[str, str], ...]], list[int]] = {}
        for i, window in enumerate(windows):
            told = tuple(sorted(window.attributes.items())) if self.use_attributes else ()
            frames = len(window.crops[self.view].pictures)
            groups.setdefault((frames, told), []).append(i)
        for (_, told), members in groups.items():
            prompt = self.prompter.emotion(self.labels, dict(told))
            forward = partial(self._forward, prompt=prompt, trie=LabelTrie.of(prompt.labels))
            made = self.batches.run([windows[i] for i in members], forward)
            for i, scores in zip(members, made, strict=True):
                out[i] = Annotation(dict(zip(self.labels, scores, strict=True)))
        return [annotation for annotation in out if annotation is not None]

    @torch.inference_mode()
    def _forward(
        self, batch: Sequence[WindowInput], prompt: PromptTokens, trie: LabelTrie
    ) -> list[list[float]]:
        """Probability of each label for windows of equal length."""
        embeds = self._embeds(batch, prompt)
        scores = label_log_probabilities(
            self.network.language, embeds, trie, self.model_config.temperature
        )
        told: list[list[float]] = scores.exp().tolist()
        return told

    @torch.inference_mode()
    def generate_answer(self, window: WindowInput, max_tokens: int) -> str:
        """The answer as free text, greedily: the published way of asking, one window a call."""
        prompt = self.prompter.emotion(
            self.labels, window.attributes if self.use_attributes else {}
        )
        ids = greedy(self.network.language, self._embeds([window], prompt), max_tokens)[0].tolist()
        stop = ids.index(self.prompter.eos) if self.prompter.eos in ids else len(ids)
        return str(self.prompter.tokenizer.decode(ids[:stop])).strip()

    def _embeds(self, batch: Sequence[WindowInput], prompt: PromptTokens) -> Tensor:
        """(B, S, D): prompts of windows of equal length with their visual tokens in place."""
        frames = len(batch[0].crops[self.view].pictures)
        dtype = self.network.query_tokens.dtype
        question = torch.tensor(prompt.question, device=self.device)
        encoded = self.network.encode_frames(self._pixels(batch).to(dtype), question)
        tokens = encoded.frame_tokens.unflatten(0, (len(batch), frames))
        features = torch.from_numpy(np.stack([w.features for w in batch])).to(self.device, dtype)
        points = np.stack([window.crops[self.view].landmarks for window in batch])
        landmarks = torch.from_numpy(points).to(self.device, dtype)
        visual = self.network.visual_tokens(tokens, features, landmarks)
        return self.network.splice(torch.tensor(prompt.ids, device=self.device), visual)

    def _pixels(self, batch: Sequence[WindowInput]) -> Tensor:
        """(B * T, 3, S, S) float32, normalised; gray in three equal channels where so configured."""
        crops = [crop for window in batch for crop in window.crops[self.view].pictures]
        pixels = stacked([decode_crop(crop) for crop in crops], self.device)
        if self.model_config.processor.grayscale:
            # Rec. 601 luma rounded to whole levels, as training's OpenCV conversion gives it.
            weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            pixels = (pixels * weights).sum(1, keepdim=True).round().expand(-1, 3, -1, -1)
        return self.normalise(pixels).contiguous(memory_format=torch.channels_last)
