"""Tuning end to end: a config -> prepared faces -> stages -> calibration -> a model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar

from pipeline.errors import UserError
from pipeline.labels import LABEL_SETS, label_set
from pipeline.models.catalog import model_folder, weight_files
from pipeline.models.config import EmoLlamaConfig
from pipeline.models.emo_llama import EmoLlama
from pipeline.models.folder import QUESTION_LIMIT, read_prompter, save_model
from pipeline.models.prompts import (
    SYSTEM,
    Prompter,
    attribute_sentence,
    emotion_question,
    train_tokenizer,
)
from pipeline.training.card import model_card
from pipeline.training.faces import LabelledFaces, prepare_faces
from pipeline.training.instruct import InstructionTuner
from pipeline.training.loop import StageConfig, class_scores, train_stage
from pipeline.training.metrics import Scores, classification_scores
from pipeline.training.stem import StemClassifier

RECIPES = Path(__file__).parent / "recipes"


class DataConfig(BaseModel):
    """Parquet tables with columns `image` (encoded bytes) and `label`; `cache` is the folder that
    keeps the faces found in them, for other runs on the same tables (default: the output's)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Path
    valid: Path
    cache: Path | None = None


class StartConfig(BaseModel):
    """Weights to start from: a model's, or of it only the tensors whose names begin so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    only: tuple[str, ...] = ()


class AdapterConfig(BaseModel):
    """LoRA (Hu et al. 2021) on the language model. Face Info Mining and the projections into the language
    model are trained in full beside it; the vision side and the Q-Former stand still."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TuneConfig(BaseModel):
    """All that decides what comes out of `emolake tune`. model: left out, that of `start.model`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: EmoLlamaConfig | None = None
    name: str | None = None
    start: StartConfig | None = None
    adapter: AdapterConfig | None = None
    data: DataConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        whole = self.start is not None and not self.start.only
        if self.model is None and not whole:
            raise ValueError("name the sizes in `model`, or a whole model in `start.model`")
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
            made = EmoLlamaConfig.read(model_folder(self.start.model))
        return made.model_copy(update={"name": self.name} if self.name else {})


def tune(config: TuneConfig, output: Path, log: Callable[[str], None]) -> Scores:
    """Trains a model, from nothing or from another, and writes the folder `output` that `--model` takes;
    with `adapter` also `output`/adapter, in peft's layout.

    Progress, checkpoints and prepared faces stand under `output`/training; started again after a
    kill it goes on from the last checkpoint.
    """
    work = output / "training"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = config.network
    labels = label_set(model.label_set)
    cache = config.data.cache or work
    train = _faces(config.data.train, model, cache, log)
    valid = _faces(config.data.valid, model, cache, log)
    torch.manual_seed(config.seed)
    # Plain attention trains faster than the fused kernel's backward on such short sequences.
    network = EmoLlama(model, attention="eager")
    if config.start is not None:
        _start_from(config.start, network)
    prompter = _prompter(config)
    if config.adapter is not None:
        network = adapted(network, config.adapter)
    for stage in config.stages:
        if stage.trains == "stem":
            torch.manual_seed(config.seed)
            classifier = StemClassifier(model, len(labels))
            train_stage(
                classifier,
                train,
                valid,
                stage,
                seed=config.seed,
                folder=work,
                device=device,
                log=log,
            )
            stem = network.vision.model.get_submodule("embeddings.stem")
            stem.load_state_dict(classifier.stem.state_dict())
        else:
            tuner = InstructionTuner(network, prompter, labels)
            train_stage(
                tuner, train, valid, stage, seed=config.seed, folder=work, device=device, log=log
            )
    if config.adapter is not None:
        network.language.save_pretrained(str(output / "adapter"))
        network.language = network.language.merge_and_unload()  # type: ignore[operator]
    network, scores = _calibrated(network, prompter, valid, labels)
    card = model_card(config, scores, labels, train=len(train))
    save_model(output, network, prompter, card)
    return scores


def adapted(network: EmoLlama, config: AdapterConfig) -> EmoLlama:
    """The network with LoRA in its language model and nothing trainable but that, Face Info Mining and
    the projections. UserError where peft is missing or a target is no layer."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("adapter needs peft: pip install 'emolake[tune]'") from None

    network.requires_grad_(False)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
    )
    try:
        network.language = get_peft_model(network.language, lora)  # type: ignore[assignment]
    except ValueError as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"adapter.targets: {words}") from None
    projections = (network.text_projection, network.key_projection)
    for part in (*projections, network.value_projection, network.content_projection):
        part.requires_grad_(True)
    if network.face_info is not None:
        network.face_info.requires_grad_(True)
    return network


def _prompter(config: TuneConfig) -> Prompter:
    """A whole model keeps its tokenizers, whose ids its weights know; a new one gets its own."""
    if config.start is not None and not config.start.only:
        return read_prompter(model_folder(config.start.model))
    tokenizer = train_tokenizer(_texts(), config.network.language.vocab_size)
    return Prompter(tokenizer, tokenizer, QUESTION_LIMIT)


def _start_from(start: StartConfig, network: EmoLlama) -> None:
    """Copies the chosen tensors; UserError where one does not fit or none is meant."""
    chosen = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for path in weight_files(model_folder(start.model))
        for name, tensor in load_file(path).items()
        if not start.only or name.startswith(start.only)
    }
    if not chosen:
        raise UserError(f"start.only: {start.model} has no tensor whose name begins so")
    ours = network.state_dict()
    for name, tensor in chosen.items():
        if name not in ours or ours[name].shape != tensor.shape:
            have = tuple(ours[name].shape) if name in ours else "none"
            raise UserError(
                f"start.model: {name} has shape {tuple(tensor.shape)}, the model to tune {have}"
            )
    network.load_state_dict(chosen, strict=False)


def _faces(
    path: Path, model: EmoLlamaConfig, cache: Path, log: Callable[[str], None]
) -> LabelledFaces:
    faces = prepare_faces(
        path,
        label_set(model.label_set),
        model.crop,
        grayscale=model.processor.grayscale,
        cache=cache,
    )
    log(f"{path.name}: {len(faces)} faces")
    return faces


def _texts() -> list[str]:
    """What the tokenizer must hold whole: the prompts and every label of every set."""
    texts = [f"{SYSTEM} USER: "]
    texts += [attribute_sentence({"age": "20-29", "gender": "female", "race": "Asian"})]
    for labels in LABEL_SETS.values():
        texts += [f"\n{emotion_question(labels)} ASSISTANT:", *(f" {label}" for label in labels)]
    return texts * 4


def _calibrated(
    network: EmoLlama, prompter: Prompter, valid: LabelledFaces, labels: tuple[str, ...]
) -> tuple[EmoLlama, Scores]:
    """Fits the temperature on the validation faces in float32, as inference computes."""
    network = network.float()
    tuner = InstructionTuner(network, prompter, labels)
    device = next(network.parameters()).device
    log_scores = class_scores(tuner.to(device), valid, device, "float32")
    temperature = fit_temperature(log_scores, valid.labels)
    config = network.config.model_copy(update={"temperature": round(temperature, 4)})
    network.config = config
    return network, classification_scores(_softmax(log_scores / config.temperature), valid.labels)


def fit_temperature(log_scores: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """The temperature of least negative log-likelihood (Guo et al. 2017), by bounded search."""

    def nll(log_temperature: float) -> float:
        probabilities = _softmax(log_scores / np.exp(log_temperature))
        picked = probabilities[np.arange(len(truth)), truth]
        return float(-np.log(np.maximum(picked, 1e-12)).mean())

    found = minimize_scalar(nll, bounds=(-2.0, 2.0), method="bounded")
    return float(np.exp(found.x))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    out: NDArray[np.float64] = shifted / shifted.sum(1, keepdims=True)
    return out
