"""Sizes and settings of an EMO-LLaMA model: what config.json of a model folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.faces.align import CropSpec


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionConfig(_Part):
    """The tower that turns a face crop into patch features.

    `eva_vit` is EVA-CLIP's ViT as BLIP-2 and LLaMA-VID use it; `conv_vit` has a convolutional stem
    in front of few transformer layers, for models of a few million parameters.
    """

    kind: Literal["eva_vit", "conv_vit"] = "eva_vit"
    image_size: int = 224
    patch_size: int = 14
    width: int = 1408
    depth: int = 39
    heads: int = 16
    mlp_hidden: int = 6144
    layer_norm_eps: float = 1e-6
    stem_channels: tuple[int, ...] = ()

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


class QFormerConfig(_Part):
    vocab_size: int = 30523
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_hidden: int = 3072
    max_positions: int = 512
    num_query: int = 32
    cross_attention_freq: int = 2
    layer_norm_eps: float = 1e-12


class LanguageConfig(_Part):
    vocab_size: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int | None = None
    mlp_hidden: int = 11008
    max_positions: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class FaceInfoConfig(_Part):
    """Face Info Mining; see docs/model.md for what is the paper's and what is ours."""

    source: Literal["onet", "arcface"] = "onet"
    global_dim: int = 256
    num_landmarks: int = 5
    num_queries: int = 8
    width: int = 192
    depth: int = 2
    heads: int = 4


class ProcessorConfig(_Part):
    """From RGB crops to the tower's input."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    grayscale: bool = False
    crop_margin: float = 0.12
    crop_rise: float = 0.0


class ModelConfig(_Part):
    """Everything that defines a model but its weights."""

    name: str = "emo-llama"
    family: Literal["emo-llama", "llama-vid"] = "emo-llama"
    vision: VisionConfig = VisionConfig()
    qformer: QFormerConfig = QFormerConfig()
    language: LanguageConfig = LanguageConfig()
    face_info: FaceInfoConfig | None = None
    processor: ProcessorConfig = ProcessorConfig()
    compress_type: str = Field("mean", pattern=r"^(mean|grid:[1-9]\d*)$")
    mm_projector_type: Literal["mlp2x_gelu"] = "mlp2x_gelu"
    label_set: str = "fer2013"
    attributes: bool = False  # whether it was tuned with age, gender and race in the prompt
    temperature: float = Field(1.0, gt=0)

    @property
    def crop(self) -> CropSpec:
        """How the face stage must cut faces for this model."""
        processor = self.processor
        return CropSpec(self.vision.image_size, processor.crop_margin, processor.crop_rise)

    @property
    def content_tokens(self) -> int:
        """Content tokens per frame, beside the one context token."""
        if self.compress_type == "mean":
            return 1
        return int(self.compress_type.partition(":")[2]) ** 2

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Reads `folder`/config.json; UserError where it is missing or malformed."""
        path = folder / "config.json"
        try:
            return cls.model_validate(json.loads(path.read_text()))
        except FileNotFoundError:
            raise UserError(f"{folder} is no model folder: it holds no config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: {where}: {first['msg']}") from None
