"""Sizes and settings of a model: what config.json of a model folder holds, one class a family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, FrameView, Needs


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

    source: Literal["onet"] = "onet"
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
    """What every family has. temperature: of the calibrated label scores."""

    name: str
    family: str
    label_set: str = "fer2013"
    temperature: float = Field(1.0, gt=0)
    trained: bool = True  # False for random weights: a run says that its labels mean nothing

    @property
    def computes_here(self) -> bool:
        """Whether it takes a device of the cluster; else it runs elsewhere."""
        return True

    @property
    def needs(self) -> Needs:
        """What the face stage must make for it."""
        raise NotImplementedError

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads `folder`/config.json; UserError where it is missing, malformed or of another family."""
        path = folder / "config.json"
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: {where}: {first['msg']}") from None


class EmoLlamaConfig(ModelConfig):
    """EMO-LLaMA, and LLaMA-VID where `face_info` is null."""

    name: str = "emo-llama"
    family: Literal["emo-llama", "llama-vid"] = "emo-llama"
    vision: VisionConfig = VisionConfig()
    qformer: QFormerConfig = QFormerConfig()
    language: LanguageConfig = LanguageConfig()
    face_info: FaceInfoConfig | None = None
    processor: ProcessorConfig = ProcessorConfig()
    compress_type: str = Field("mean", pattern=r"^(mean|grid:[1-9]\d*)$")
    mm_projector_type: Literal["mlp2x_gelu"] = "mlp2x_gelu"
    context_token: bool = True  # False only to measure what it brings
    attributes: bool = False  # whether it was tuned with age, gender and race in the prompt
    transcript: bool = False  # whether it was tuned with what is said in the prompt

    @model_validator(mode="after")
    def _grid_is_square(self) -> Self:
        if self.compress_type != "mean" and self.vision.kind == "eva_vit" and self.vision.grid % 2:
            raise ValueError(
                f"{self.vision.grid} patches a side and a class token, which LLaMA-VID keeps then, are no "
                f"square for compress_type {self.compress_type}"
            )
        return self

    @property
    def crop(self) -> CropSpec:
        """How the face stage must cut faces for this model."""
        processor = self.processor
        return CropSpec(self.vision.image_size, processor.crop_margin, processor.crop_rise)

    @property
    def needs(self) -> Needs:
        return Needs(
            crops=(CropView(self.crop),),
            features=self.face_info is not None,
            transcript=self.transcript,
        )


class ClipConfig(_Part):
    """CLIP's ViT as `transformers` has it; layers past `select_layer` are never run."""

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_hidden: int = 4096
    select_layer: int = Field(-2, lt=0)  # of the hidden states, counted from the end as LLaVA does

    @property
    def used_depth(self) -> int:
        """Layers that have a part in the selected hidden state."""
        return self.depth + 1 + self.select_layer


class EmolaConfig(ModelConfig):
    """EmoLA (arXiv 2404.05052): LLaVA-1.5 with a token of facial landmark features."""

    name: str = "emola"
    family: Literal["emola"] = "emola"
    vision: ClipConfig = ClipConfig()
    language: LanguageConfig = LanguageConfig()
    landmark_dim: int = 212
    lora_alpha: float = 256.0  # of the published adapter, which conversion merges into the base
    processor: ProcessorConfig = ProcessorConfig(crop_margin=0.3)

    @property
    def crop(self) -> CropView:
        """One picture of the face, as LLaVA reads one picture."""
        processor = self.processor
        spec = CropSpec(self.vision.image_size, processor.crop_margin, processor.crop_rise)
        return CropView(spec, middle_only=True)

    @property
    def needs(self) -> Needs:
        return Needs(crops=(self.crop,))


class EmotionLlamaConfig(ModelConfig):
    """Emotion-LLaMA (arXiv 2406.11161): MiniGPT-v2 with three features of the clip."""

    name: str = "emotion-llama"
    family: Literal["emotion-llama"] = "emotion-llama"
    label_set: str = "emotion-llama"
    vision: VisionConfig = VisionConfig(image_size=448)
    language: LanguageConfig = LanguageConfig()
    feature_dim: int = 1024
    lora_alpha: float = 16.0  # of the published adapter, which conversion merges into the base
    join: int = 4  # neighbouring patches that become one token
    face_size: int = 224  # what FaceMAE and VideoMAE look at
    processor: ProcessorConfig = ProcessorConfig()

    @property
    def picture(self) -> FrameView:
        """The one frame of the clip that the language model sees."""
        return FrameView(self.vision.image_size, middle_only=True)

    @property
    def clip(self) -> FrameView:
        return FrameView(self.face_size)

    @property
    def faces(self) -> CropView:
        return CropView(CropSpec(self.face_size))

    @property
    def needs(self) -> Needs:
        return Needs(
            crops=(self.faces,), frames=(self.picture, self.clip), sound=True, transcript=True
        )


class EmoLlmConfig(ModelConfig):
    """EmoLLMs (arXiv 2401.08508): any causal or seq2seq checkpoint of `transformers`, reading text."""

    family: Literal["emollm"] = "emollm"
    label_set: str = "emollms"

    @property
    def needs(self) -> Needs:
        return Needs(transcript=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; UserError where there is none."""
    try:
        tree = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent} is no model folder: it holds no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no JSON object")
    return tree
