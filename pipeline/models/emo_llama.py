"""EMO-LLaMA: LLaMA-VID (arXiv 2311.17043) with Face Info Mining (arXiv 2408.11424).

The vision tower, Q-Former and language model are `transformers` modules. Ours is what the field has
no module for: context attention, content pooling, Face Info Mining and the order of the tokens.
With `face_info` null in the config the model is exactly LLaMA-VID.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel, PreTrainedModel

from emolake.pipeline.models.config import EmoLlamaConfig, QFormerConfig
from emolake.pipeline.models.face_info import FaceInfoMining
from emolake.pipeline.models.language import causal_language, spliced
from emolake.pipeline.models.vision import VisionTower


@dataclass(frozen=True)
class EncodedFrames:
    """What the visual side makes of N frames.

    vision_features: (N, 1 + P, Cv) before any final norm; qformer_output: (N, Q, Cq), (N, 0, Cv)
    in a model without context token; frame_tokens: (N, k, D), the context token first, then the
    content token(s).
    """

    vision_features: Tensor
    qformer_output: Tensor
    frame_tokens: Tensor


class EmoLlama(nn.Module):
    """Frames, facial priors and a prompt -> next-token logits."""

    def __init__(self, config: EmoLlamaConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        vision, width = config.vision, config.language.width
        self.vision = VisionTower(vision, attention)
        self.qformer = InstructBlipQFormerModel(
            _qformer_config(config.qformer, vision.width, attention)
        )
        self.query_tokens = nn.Parameter(
            torch.randn(1, config.qformer.num_query, config.qformer.width) * 0.02
        )
        self.text_projection = nn.Linear(config.qformer.width, vision.width)
        self.key_projection = nn.Linear(vision.width, vision.width)
        self.value_projection = nn.Linear(vision.width, width)
        self.content_projection = nn.Sequential(
            nn.Linear(vision.width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.face_info = (
            FaceInfoMining(config.face_info, width) if config.face_info is not None else None
        )
        self.language = causal_language(config.language, attention)

    def encode_frames(self, pixel_values: Tensor, question_ids: Tensor) -> EncodedFrames:
        """pixel_values (N, 3, H, W) normalised, question_ids (n,) for the Q-Former."""
        features = self.vision(pixel_values)
        patches = features[:, 1:] if self._drops_class_token(features) else features
        if not self.config.context_token:
            return EncodedFrames(features, features[:, :0], self._content(patches))
        n = len(features)
        queries = self.query_tokens.expand(n, -1, -1)
        output = self.qformer(
            input_ids=question_ids.expand(n, -1),
            query_embeds=queries,
            encoder_hidden_states=self.vision.normed(features),
        ).last_hidden_state[:, : queries.shape[1]]
        tokens = torch.cat([self._context(output, patches), self._content(patches)], dim=1)
        return EncodedFrames(features, output, tokens)

    def _drops_class_token(self, features: Tensor) -> bool:
        """LLaMA-VID does where the tower gives an odd number of tokens, as that of 224 pixels: 257."""
        return self.config.vision.kind != "eva_vit" or features.shape[1] % 2 == 1

    def _context(self, qformer_output: Tensor, patches: Tensor) -> Tensor:
        """LLaMA-VID's context attention: text-guided queries pool the patches to one token."""
        query = self.text_projection(qformer_output)
        key = self.key_projection(patches)
        scores = (query @ key.transpose(-1, -2)) / key.shape[-1] ** 0.5
        pooled = (scores.softmax(-1) @ patches).mean(1, keepdim=True)
        out: Tensor = self.value_projection(pooled)
        return out

    def _content(self, patches: Tensor) -> Tensor:
        if self.config.compress_type == "mean":
            pooled = patches.mean(1, keepdim=True)
        else:
            cells = int(self.config.compress_type.partition(":")[2])
            side = round(patches.shape[1] ** 0.5)
            grid = patches.transpose(1, 2).unflatten(2, (side, side))
            pooled = F.avg_pool2d(grid, side // cells).flatten(2).transpose(1, 2)
        out: Tensor = self.content_projection(pooled)
        return out

    def visual_tokens(
        self, frame_tokens: Tensor, features: Tensor | None, landmarks: Tensor | None
    ) -> Tensor:
        """frame_tokens (B, T, k, D) and the priors of Face Info Mining -> (B, T * k [+ K], D)."""
        tokens = frame_tokens.flatten(1, 2)
        if self.face_info is None:
            return tokens
        if features is None or landmarks is None:
            raise ValueError("a model with face_info needs face features and landmarks")
        return torch.cat([tokens, self.face_info(features, landmarks, frame_tokens)], dim=1)

    def recompute_activations(self, wanted: bool) -> None:
        """Whether training keeps the layers' activations or makes them again on the way back."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing:
                if wanted:
                    module.activation_checkpointing_enable({"use_reentrant": False})
                else:
                    module.activation_checkpointing_disable()

    def splice(self, prompt_ids: Tensor | tuple[int, ...], visual_tokens: Tensor) -> Tensor:
        """prompt_ids (m,) or (B, m) with one IMAGE_TOKEN each, visual_tokens (B, v, D) ->
        (B, m - 1 + v, D)."""
        return spliced(self.language, prompt_ids, visual_tokens)


def _qformer_config(
    config: QFormerConfig, vision_width: int, attention: str
) -> InstructBlipQFormerConfig:
    return InstructBlipQFormerConfig(  # type: ignore[call-arg]
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_hidden,
        max_position_embeddings=config.max_positions,
        layer_norm_eps=config.layer_norm_eps,
        cross_attention_frequency=config.cross_attention_freq,
        encoder_hidden_size=vision_width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
