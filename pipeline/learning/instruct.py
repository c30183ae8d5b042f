"""Stage two: the whole model learns to answer what it is asked; of a labelled picture, the emotion
question with a label word."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from emolake.pipeline.learning.batches import Batch
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.prompts import Prompter, PromptTokens, Told, emotion_question
from emolake.pipeline.models.scoring import LabelTrie, Prefill

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
        """(B,) losses. A label's is the cross entropy of its tokens and the stop token, weighted by
        class; smoothing spreads its part over the labels' first tokens only, not the whole vocabulary.
        A written answer's is the mean over its tokens, so that a long one does not outweigh the rest.
        """
        read = [self._read(told) for told in batch.told]
        prompts = [self._prompt(told) for told in read]
        labels = batch.labels.tolist()
        answers = [
            [*prompt.labels[label if told.answer is None else 0], self.prompter.eos]
            for told, prompt, label in zip(read, prompts, labels, strict=True)
        ]
        logits, ids = self._answered(self._visual(batch, prompts), prompts, answers)
        each = nn.functional.cross_entropy(
            logits.transpose(1, 2), ids, ignore_index=_IGNORED, reduction="none"
        ).sum(1)
        losses = each / (ids != _IGNORED).sum(1)
        rows = [row for row, told in enumerate(read) if told.answer is None]
        if rows:
            begins = (ids[rows] != _IGNORED).int().argmax(1)
            first = torch.tensor(
                [[answer[0] for answer in prompts[row].labels] for row in rows], device=ids.device
            )
            spread = logits[rows, begins].log_softmax(-1).gather(1, first)
            hit = each[rows] * weights[batch.labels[rows]]
            of_labels = (1 - smoothing) * hit - smoothing * spread.mean(1)
            losses = losses.index_copy(0, torch.tensor(rows, device=ids.device), of_labels)
        return losses

    def _answered(
        self, visual: Tensor, prompts: list[PromptTokens], answers: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, A, V) of the last A places and the ids (B, A) they should give, _IGNORED where
        nothing is asked. Rows are filled up on the right, where what is read before cannot see it."""
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
