"""All that decides what comes out of `emolake tune`: one typed tree."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from emolake.pipeline.learning.adapter import AdapterConfig
from emolake.pipeline.learning.loop import StageConfig
from emolake.pipeline.models.catalog import model_path
from emolake.pipeline.models.config import EmoLlamaConfig

RECIPES = Path(__file__).parent / "recipes"


class DataConfig(BaseModel):
    """Labelled tables or instruction records (Parquet, CSV, JSONL; a file or fsspec URI): `image`, `uri`
    or `frames`, with `label`, or `question` and `answer`, or both. frames: at most so many of a video's
    are kept. cache: the folder that keeps the faces found, for other runs on the same tables (default:
    the output's)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str
    valid: str
    frames: int = Field(8, ge=1, le=64)
    cache: Path | None = None

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _as_text(cls, given: object) -> object:
        return str(given) if isinstance(given, Path) else given


class StartConfig(BaseModel):
    """Weights to start from: a model's, or of it only the tensors whose names begin so; adapter: the
    folder of one that was tuned on that model, merged into it first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    only: tuple[str, ...] = ()
    adapter: Path | None = None


class WorkersConfig(BaseModel):
    """Processes that train together under Ray Train, on a cluster that shares the output's file system.
    One worker without a cluster is the command's own process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(1, ge=1)
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)
    max_failures: int = Field(3, ge=0)


class TuneConfig(BaseModel):
    """All that decides what comes out of `emolake tune`. model: left out, that of `start.model`. reads:
    what of an example's context enters its prompt (default: what the model to start from reads)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: EmoLlamaConfig | None = None
    name: str | None = None
    start: StartConfig | None = None
    adapter: AdapterConfig | None = None
    data: DataConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    reads: tuple[Literal["attributes", "transcript"], ...] | None = None
    seed: int = Field(0, ge=0)
    tensorboard: bool = False
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        whole = self.start is not None and not self.start.only
        if self.model is None and not whole:
            raise ValueError("name the sizes in `model`, or a whole model in `start.model`")
        if self.start is not None and self.start.adapter is not None and not whole:
            raise ValueError("`start.adapter` adapts a whole model; leave `start.only` out")
        if self.adapter is not None:
            if not whole:
                raise ValueError("`adapter` adapts a whole model; name it in `start.model`")
            for stage in self.stages:
                if stage.trains != "model" or stage.stem_learning_rate_factor:
                    raise ValueError(
                        f"with `adapter` the vision side stands still; stage {stage.name} has to have "
                        "trains: model and stem_learning_rate_factor: 0"
                    )
        return self

    @property
    def network(self) -> EmoLlamaConfig:
        """The config of the model to be trained. UserError where `start.model` is none of EMO-LLaMA's."""
        made = self.model
        if made is None:
            assert self.start is not None
            made = EmoLlamaConfig.read(model_path(self.start.model))
        changes: dict[str, object] = {"name": self.name} if self.name else {}
        if self.reads is not None:
            changes |= {what: what in self.reads for what in ("attributes", "transcript")}
        return made.model_copy(update=changes)
