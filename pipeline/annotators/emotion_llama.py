"""Emotion-LLaMA as an annotator: a frame, the clip's face, motion and sound, and what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emolake.pipeline.annotators.answers import by_answer
from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.annotators.batches import MicroBatches
from emolake.pipeline.annotators.clip_features import ClipEncoders, Clips
from emolake.pipeline.annotators.language_side import LanguageSide
from emolake.pipeline.annotators.pixels import Normaliser, decoded, for_device, on_device
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.labels import label_set, spelled
from emolake.pipeline.models.catalog import model_path, model_revision
from emolake.pipeline.models.config import EmotionLlamaConfig
from emolake.pipeline.models.emotion_llama import EmotionLlama
from emolake.pipeline.models.folder import load_network, read_prompter
from emolake.pipeline.models.precision import computing
from emolake.pipeline.models.scoring import LabelTrie, Prefill
from emolake.pipeline.models.transfer import sent

_BEFORE = "[INST] <video>"
_BETWEEN = "</video> <feature>"
_LONGEST_TRANSCRIPT = 256  # tokens; a window of seconds says less


@dataclass(frozen=True)
class Given:
    """What can be made ready without the device. pixels: (B, S, S, 3) uint8."""

    windows: Sequence[WindowInput]
    pixels: Tensor
    clips: Clips


class EmotionLlamaAnnotator:
    """Label scores from the [emotion] task; clues in words from the [reason] task where asked for.

    Windows whose prompts are equally long share a forward pass, so none is ever padded.
    """

    def __init__(self, model: str, config: AnnotatorConfig, device: str = "cpu") -> None:
        folder = model_path(model)
        self.config = EmotionLlamaConfig.read(folder)
        self.options = config
        self.name, self.revision = self.config.name, model_revision(folder)
        self.needs = self.config.needs
        self.device = torch.device(device)
        self.network = load_network(
            folder, lambda: EmotionLlama(self.config), device, config.precision
        )
        self.prompter = read_prompter(folder)
        self.encoders = ClipEncoders(
            config.face_mae,
            config.video_mae,
            config.audio_encoder,
            self.config.feature_dim,
            self.device,
        )
        self.labels = label_set(config.label_set or self.config.label_set)
        self.batches = MicroBatches(config.micro_batch, self.device)
        self.language = LanguageSide(self.network.language, self.prompter, config)
        words = [spelled(label) for label in self.labels]
        self.trie = LabelTrie.of(tuple(self.prompter.answer(w, end="[/INST]") for w in words))
        self._emotion = (
            "[emotion] Please determine which emotion label in the video represents: "
            f"{', '.join(words)}."
        )
        self._reason = (
            "[reason] What are the facial expressions and what is said in the video? "
            "What emotion does this reflect?"
        )
        self._before = (self.prompter.bos, *self.prompter.encode(_BEFORE))
        self._between = self._ids(self.prompter.encode(_BETWEEN))
        processor = self.config.processor
        self.normalise = Normaliser(processor.mean, processor.std, self.device)

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        out: list[Annotation | None] = [None] * len(windows)
        groups: dict[int, list[int]] = {}
        for i, window in enumerate(windows):
            groups.setdefault(len(self._after(window, self._emotion)), []).append(i)
        for members in groups.values():
            made = self.batches.run([windows[i] for i in members], self.prepared, self.forward)
            for i, annotation in zip(members, made, strict=True):
                out[i] = annotation
        return [annotation for annotation in out if annotation is not None]

    def prepared(self, batch: Sequence[WindowInput]) -> Given:
        pictures = decoded((w.frames[self.config.picture][0] for w in batch), self.device)
        faces, clip = self.config.faces, self.config.clip
        return Given(
            windows=batch,
            pixels=for_device(np.stack(pictures), self.device),
            clips=self.encoders.prepared(
                [(w.crops[faces].pictures, w.frames[clip], w.sound) for w in batch]
            ),
        )

    @torch.inference_mode()
    def forward(self, given: Given) -> list[Annotation]:
        """Windows whose prompts are equally long."""
        with computing(self.options.precision, self.device):
            return self._told_of(given)

    def _told_of(self, given: Given) -> list[Annotation]:
        batch = given.windows
        pixels = self.normalise(on_device(given.pixels, self.device))
        features = self.encoders(given.clips)
        tokens = self.network.multimodal_tokens(pixels, features)
        prefill = self._read(batch, self._emotion, tokens)
        scores = self.language.scores(prefill, self.trie, self.config.temperature)
        described: list[str | None] = [None] * len(batch)
        answers: list[str | None] = [None] * len(batch)
        if self.options.describe:
            described = list(self.language.written(self._read(batch, self._reason, tokens)))
        if self.options.read_answer:
            answers = list(self.language.written(prefill))
        made = []
        for row, words, answer, window in zip(scores, described, answers, batch, strict=True):
            told, absent = dict(zip(self.labels, row, strict=True)), _absent(window)
            if self.options.read_answer:
                told, unread = by_answer(told, answer)
                absent += unread
            made.append(
                Annotation(
                    told,
                    description=words,
                    transcript=window.transcript,
                    absent=absent or None,
                )
            )
        return made

    def _read(self, batch: Sequence[WindowInput], task: str, tokens: Tensor) -> Prefill:
        after = self._ids([self._after(window, task) for window in batch])
        embeds = self.network.splice(self._ids(self._before), self._between, after, tokens)
        return self.language.read(self._before, embeds)

    def _after(self, window: WindowInput, task: str) -> tuple[int, ...]:
        said = self.prompter.encode(window.transcript or "")[:_LONGEST_TRANSCRIPT]
        return (
            *self.prompter.encode("</feature> The person in video says:"),
            *(
                self.prompter.encode(f" {self.prompter.tokenizer.decode(list(said))}.")
                if said
                else ()
            ),
            *self.prompter.encode(f" {task} [/INST]"),
        )

    def _ids(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return sent(torch.tensor(ids), self.device)


def _absent(window: WindowInput) -> list[str]:
    """What the model reads and this window had not."""
    return [
        name
        for name, given in (("sound", window.sound), ("transcript", window.transcript))
        if given is None or len(given) == 0
    ]
