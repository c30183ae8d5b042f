"""Stage two: the whole model learns to answer the emotion question with a label word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.emo_llama import EmoLlama
from pipeline.models.prompts import Prompter
from pipeline.models.scoring import LabelTrie, Prefill
from pipeline.training.augment import Clips


class InstructionTuner(nn.Module):
    """An EmoLlama with the emotion prompt of one label set, trained on its answer tokens."""

    def __init__(self, network: EmoLlama, prompter: Prompter, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.size = network.config.vision.image_size
        prompt = prompter.emotion(labels)
        self.trie = LabelTrie.of(prompt.labels)
        self.answers = [torch.tensor([*label, prompter.eos]) for label in prompt.labels]
        processor = network.config.processor
        self.register_buffer("mean", torch.tensor(processor.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.std).view(3, 1, 1), persistent=False)
        self.register_buffer("prompt", torch.tensor(prompt.ids), persistent=False)
        self.register_buffer("question", torch.tensor(prompt.question), persistent=False)

    def log_scores(self, clips: Clips, features: Tensor) -> Tensor:
        """(B, L) log-probabilities, normalised over the label set."""
        embeds = self._embeds(clips, features)
        return Prefill(self.network.language, embeds).label_log_probabilities(self.trie)

    def loss(
        self, clips: Clips, features: Tensor, target: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        """Cross entropy of the answer's tokens and the stop token, weighted by class.

        Smoothing spreads its part over the labels' first tokens only, not the whole vocabulary.
        """
        embeds = self._embeds(clips, features)
        longest = max(len(answer) for answer in self.answers)
        ids = torch.full((len(target), longest), -100, device=target.device)
        for row, label in enumerate(target.tolist()):
            ids[row, : len(self.answers[label])] = self.answers[label].to(target.device)
        read = self.network.language.get_input_embeddings()(ids[:, :-1].clamp_min(0))
        logits = self.network.language(
            inputs_embeds=torch.cat([embeds, read.to(embeds.dtype)], 1), logits_to_keep=longest
        ).logits.float()
        each = nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        loss = (each.sum(1) * weights[target]).mean()
        first = torch.tensor([int(answer[0]) for answer in self.answers], device=target.device)
        smooth = -logits[:, 0].log_softmax(-1)[:, first].mean()
        return (1 - smoothing) * loss + smoothing * smooth

    def _embeds(self, clips: Clips, features: Tensor) -> Tensor:
        batch, frames = clips.pixels.shape[:2]
        pixels = ((clips.pixels.flatten(0, 1) - self.mean) / self.std).contiguous(  # type: ignore[operator]
            memory_format=torch.channels_last
        )
        encoded = self.network.encode_frames(pixels, self.question)  # type: ignore[arg-type]
        tokens = encoded.frame_tokens.unflatten(0, (batch, frames))
        repeated = features[:, None].expand(-1, frames, -1)
        visual = self.network.visual_tokens(tokens, repeated, clips.landmarks)
        return self.network.splice(self.prompt, visual)  # type: ignore[arg-type]
