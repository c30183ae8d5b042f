"""Stage two: the whole model learns to answer what it is asked; of a labelled picture, the emotion
question with a label word."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from emolake.pipeline.learning.batches import Batch
from emolake.pipeline.learning.stem import soft_cross_entropy
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.prompts import Prompter, PromptTokens, Told, emotion_question
from emolake.pipeline.models.scoring import LabelTrie, Prefill, sequence_log_probabilities

_IGNORED = -100


class InstructionTuner(nn.Module):
    """An EmoLlama, trained on its answer tokens; it reads of an example's context what its config says
    that it reads."""

    def __init__(self, network: EmoLlama, prompter: Prompter, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.size = network.config.vision.image_size
        self.prompter = prompter
        self.labels = labels
        self._prompts: dict[Told, PromptTokens] = {}
        processor = network.config.processor
        self.register_buffer("mean", torch.tensor(processor.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.std).view(3, 1, 1), persistent=False)

    def log_scores(self, batch: Batch) -> Tensor:
        """(B, L) log-probabilities of the emotion question's answers, normalised over the label set."""
        visual = self._visual(batch, [self._prompt(Told())] * len(batch))
        context = [replace(self._read(told), question=None, answer=None) for told in batch.told]
        out: Tensor | None = None
        for told in dict.fromkeys(context):
            rows = [row for row, other in enumerate(context) if other == told]
            prompt = self._prompt(told)
            ids = torch.tensor(prompt.ids, device=visual.device)
            embeds = self.network.splice(ids, visual[rows])
            scores = Prefill(self.network.language, embeds).label_log_probabilities(
                LabelTrie.of(prompt.labels)
            )
            out = scores.new_empty(len(batch), scores.shape[1]) if out is None else out
            out[rows] = scores
        assert out is not None
        return out

    def forward(self, batch: Batch, weights: Tensor, smoothing: float) -> Tensor:
        """(B,) losses. Of a picture that people labelled: the cross entropy of what they saw against the
        probability that the language model writes each label and stops, weighted by class; so what is
        trained is what is read (`Prefill`). Of one with a written answer: the mean over its tokens, so
        that a long one does not outweigh the rest.
        """
        read = [self._read(told) for told in batch.told]
        prompts = [self._prompt(told) for told in read]
        visual = self._visual(batch, prompts)
        losses = visual.new_zeros(len(batch), dtype=torch.float32)
        groups: dict[Told | None, list[int]] = {}
        for row, told in enumerate(read):
            groups.setdefault(told if told.answer is None else None, []).append(row)
        for asked, rows in groups.items():
            some = [prompts[row] for row in rows]
            if asked is None:
                logits, ids = self._answered(visual[rows], some)
                each = nn.functional.cross_entropy(
                    logits.transpose(1, 2), ids, ignore_index=_IGNORED, reduction="none"
                ).sum(1)
                made = each / (ids != _IGNORED).sum(1)
            else:
                made = soft_cross_entropy(
                    self._written(visual[rows], some[0]), batch.shares[rows], weights, smoothing
                )
            losses = losses.index_copy(0, torch.tensor(rows, device=losses.device), made)
        return losses

    def _written(self, visual: Tensor, prompt: PromptTokens) -> Tensor:
        """(B, L) log-probability that each label is written after the prompt, and nothing after it."""
        ids = torch.tensor(prompt.ids, device=visual.device)
        answers = tuple((*label, self.prompter.eos) for label in prompt.labels)
        return sequence_log_probabilities(
            self.network.language, self.network.splice(ids, visual), LabelTrie.of(answers)
        )

    def _answered(self, visual: Tensor, prompts: list[PromptTokens]) -> tuple[Tensor, Tensor]:
        """Logits (B, A, V) of the last A places and the ids (B, A) they should give, _IGNORED where
        nothing is asked. Rows are filled up on the right, where what is read before cannot see it."""
        answers = [[*prompt.labels[0], self.prompter.eos] for prompt in prompts]
        given = [
            [*prompt.ids, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)
        ]
        longest = max(map(len, given))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in given])
        embeds = self.network.splice(ids.to(visual.device), visual)
        begins = [len(prompt.ids) - 1 for prompt in prompts]
        kept = longest - min(begins)
        wanted = torch.full((len(ids), kept), _IGNORED, device=visual.device)
        for row, (begin, answer) in enumerate(zip(begins, answers, strict=True)):
            at = begin - min(begins)
            wanted[row, at : at + len(answer)] = torch.tensor(answer, device=visual.device)
        language = self.network.language
        logits = language(inputs_embeds=embeds, logits_to_keep=kept, use_cache=False).logits
        return logits.float(), wanted

    def _read(self, told: Told) -> Told:
        """What of an example this model reads."""
        config = self.network.config
        return replace(
            told,
            attributes=told.attributes if config.attributes else (),
            transcript=told.transcript if config.transcript else None,
        )

    def _prompt(self, told: Told) -> PromptTokens:
        """Its labels: those of the set, or the one written answer."""
        if told not in self._prompts:
            context = dict(told.attributes), told.transcript
            question = told.question or emotion_question(self.labels)
            answers = self.labels if told.answer is None else (told.answer,)
            self._prompts[told] = self.prompter.asked(question, answers, *context)
        return self._prompts[told]

    def _visual(self, batch: Batch, prompts: list[PromptTokens]) -> Tensor:
        """(B, v, D) visual tokens; the Q-Former reads each row's own question."""
        count, frames = batch.clips.pixels.shape[:2]
        pixels = ((batch.clips.pixels - self.mean) / self.std).contiguous()  # type: ignore[operator]
        out: Tensor | None = None
        questions = [prompt.question for prompt in prompts]
        for question in dict.fromkeys(questions):
            rows = [row for row, other in enumerate(questions) if other == question]
            some = pixels if len(rows) == count else pixels[rows]
            encoded = self.network.encode_frames(
                some.flatten(0, 1).contiguous(memory_format=torch.channels_last),
                torch.tensor(question, device=pixels.device),
            )
            tokens = encoded.frame_tokens.unflatten(0, (len(rows), frames))
            visual = self.network.visual_tokens(
                tokens, batch.features[rows], batch.clips.landmarks[rows]
            )
            if len(rows) == count:
                return visual
            out = visual.new_empty(count, *visual.shape[1:]) if out is None else out
            out = out.index_copy(0, torch.tensor(rows, device=visual.device), visual)
        assert out is not None
        return out
