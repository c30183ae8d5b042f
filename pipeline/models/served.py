"""Vision-language models behind an OpenAI-compatible endpoint: what the YAML file that `--model` names says,
`endpoint: http://vllm:8000/v1` and `model: Qwen/Qwen2.5-VL-7B-Instruct` at least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, FrameView, Needs
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.config import ModelConfig


class Served(BaseModel):
    """shows: the face's aligned crops, or whole frames; price: of a million tokens read and written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    endpoint: str = Field(pattern=r"^https?://[^@?#\s]+$")
    model: str = Field(min_length=1)
    name: str | None = Field(None, pattern=r"^\S(.*\S)?$")
    revision: str | None = None
    label_set: str = "fer2013"
    shows: Literal["face", "frame"] = "face"
    frames: int = Field(4, ge=1, le=16)
    size: int = Field(336, ge=64, le=2048)
    crop_margin: float = Field(0.4, gt=-0.5, le=3)
    temperature: float = Field(1.0, gt=0)
    concurrency: int = Field(8, ge=1, le=256)
    requests_per_minute: float | None = Field(None, gt=0)
    timeout_s: float = Field(60.0, gt=0)
    retries: int = Field(3, ge=0)
    patience_s: float = Field(300.0, ge=0)
    price: tuple[float, float] | None = None
    licence: str | None = None

    @property
    def telling(self) -> str:
        """What of it results depend on."""
        shown = {"shows", "frames", "size", "crop_margin"}
        return self.model_dump_json(
            include={*shown, "model", "revision", "label_set", "temperature"}
        )


class ServedConfig(ModelConfig):
    family: Literal["served"] = "served"
    served: Served

    @property
    def refusal(self) -> str:
        """What is said to who has not allowed that pictures leave."""
        what = "crops of the face" if self.served.shows == "face" else "whole frames"
        return (
            f"model {self.name} is behind {self.served.endpoint}: up to {self.served.frames} {what} of every "
            "window would be sent there; allow it with --set annotator.send_pictures=true"
        )

    @property
    def computes_here(self) -> bool:
        return False

    def cost(self, used: Mapping[str, int]) -> float | None:
        """Of the tokens used, in the currency of the price; None where none is said."""
        if self.served.price is None:
            return None
        read, written = self.served.price
        return (used["input_tokens"] * read + used["output_tokens"] * written) / 1e6

    @property
    def crop(self) -> CropView:
        return CropView(CropSpec(self.served.size, self.served.crop_margin))

    @property
    def frame(self) -> FrameView:
        return FrameView(self.served.size)

    @property
    def needs(self) -> Needs:
        if self.served.shows == "face":
            return Needs(crops=(self.crop,))
        return Needs(frames=(self.frame,))


def served_config(said: Served, stem: str) -> ServedConfig:
    """UserError for an unknown label set, or an endpoint that is none."""
    label_set(said.label_set)
    try:
        port = urlsplit(said.endpoint).port
    except ValueError:
        port = 0
    if port == 0 or said.endpoint.rstrip("/").endswith("/chat/completions"):
        raise UserError(
            f"model {stem}: endpoint {said.endpoint} is no base of an API; write for example "
            "http://host:8000/v1"
        )
    name = said.name or stem
    return ServedConfig(
        name=name, label_set=said.label_set, temperature=said.temperature, served=said
    )
