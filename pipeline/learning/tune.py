"""Tuning end to end: a config -> prepared faces -> stages -> calibration -> a model folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.optimize import brentq
from torch import nn

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.metrics import Scores, classification_scores
from emolake.pipeline.labels import LABEL_SETS, label_set
from emolake.pipeline.learning.adapter import adapted, merge_adapter, save_adapter
from emolake.pipeline.learning.card import model_card
from emolake.pipeline.learning.config import StartConfig, TuneConfig
from emolake.pipeline.learning.examples import Examples, FindFaces, pictures_here, read_examples
from emolake.pipeline.learning.instruct import InstructionTuner
from emolake.pipeline.learning.loop import class_scores, train_stage
from emolake.pipeline.learning.parallel import Team
from emolake.pipeline.learning.stem import StemClassifier
from emolake.pipeline.models.catalog import model_path, weight_files
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.folder import QUESTION_LIMIT, read_prompter, save_model
from emolake.pipeline.models.prompts import (
    SYSTEM,
    Prompter,
    attribute_sentence,
    emotion_question,
    train_tokenizer,
)

_LOG_TEMPERATURES = (-2.0, 2.0)


@dataclass(frozen=True)
class Tuned:
    """What came out of a run. skipped: rows of both tables that were left out, by reason."""

    scores: Scores
    skipped: dict[str, int]

    @property
    def told(self) -> dict[str, Any]:
        """The figures that a user is told."""
        names = ("war", "uar", "macro_f1", "ece")
        figures = {name: round(getattr(self.scores, name), 4) for name in names}
        return {"n": self.scores.n, **figures, "skipped": self.skipped}


def prepare(
    config: TuneConfig, output: Path, find: FindFaces, log: Callable[[str], None]
) -> tuple[Examples, Examples]:
    """The examples of both tables; found once, they are kept for the processes that train on them."""
    model = config.network

    def examples(uri: str) -> Examples:
        return read_examples(
            uri,
            label_set(model.label_set),
            model.crop,
            grayscale=model.processor.grayscale,
            frames=config.data.frames,
            cache=config.data.cache or output / "training",
            find=find,
            log=log,
        )

    train, valid = examples(config.data.train), examples(config.data.valid)
    labelled = np.nonzero(valid.labels >= 0)[0]
    if not len(labelled):
        raise UserError(f"{config.data.valid} has no labels; the best weights are chosen by them")
    return train, valid.select(labelled)


def tune(
    config: TuneConfig,
    output: Path,
    log: Callable[[str], None],
    find: FindFaces = pictures_here,
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> Tuned:
    """Trains a model, from nothing or from another, and writes the folder `output` that `--model` takes;
    with `adapter` also `output`/adapter, in peft's layout.

    Progress, checkpoints and prepared faces stand under `output`/training; started again after a
    kill it goes on from the last checkpoint. In processes that torch.distributed has joined, each calls
    it and the first one writes.
    """
    team = Team.here()
    told = log if team.leads else lambda _: None
    model = config.network
    labels = label_set(model.label_set)
    train, valid = prepare(config, output, find, told)
    torch.manual_seed(config.seed)
    # Plain attention trains faster than the fused kernel's backward on such short sequences.
    network = EmoLlama(model, attention="eager")
    if config.start is not None:
        _start_from(config.start, network)
    prompter = _prompter(config)
    if config.adapter is not None:
        assert config.start is not None
        network = adapted(network, config.adapter, config.start.model)
    for stage in config.stages:
        network.recompute_activations(stage.gradient_checkpointing)
        tuned: nn.Module = InstructionTuner(network, prompter, labels)
        if stage.trains == "stem":
            torch.manual_seed(config.seed)
            tuned = StemClassifier(model, len(labels), stage.size)
            tuned.stem.load_state_dict(_stem(network).state_dict())
        train_stage(
            tuned,
            train,
            valid,
            stage,
            seed=config.seed,
            folder=output / "training",
            team=team,
            log=told,
            report=report,
            tensorboard=config.tensorboard,
        )
        if isinstance(tuned, StemClassifier):
            _stem(network).load_state_dict(tuned.stem.state_dict())
    if config.adapter is not None and team.leads:
        network = save_adapter(network, output / "adapter")
    elif config.adapter is not None:
        network.language = network.language.merge_and_unload()  # type: ignore[operator]
    network, scores = _calibrated(network, prompter, valid, labels, team)
    if team.leads:
        card = model_card(config, scores, labels, train=len(train))
        save_model(output, network, prompter, card)
    skipped = Counter(train.skipped) + Counter(valid.skipped)
    return Tuned(scores, dict(skipped))


def _stem(network: EmoLlama) -> nn.Module:
    return network.vision.model.get_submodule("embeddings.stem")


def _prompter(config: TuneConfig) -> Prompter:
    """A whole model keeps its tokenizers, whose ids its weights know; a new one gets its own."""
    if config.start is not None and not config.start.only:
        return read_prompter(model_path(config.start.model))
    tokenizer = train_tokenizer(_texts(), config.network.language.vocab_size)
    return Prompter(tokenizer, tokenizer, QUESTION_LIMIT)


def _start_from(start: StartConfig, network: EmoLlama) -> None:
    """Copies the chosen tensors; UserError where one does not fit or none is meant."""
    chosen = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for path in weight_files(model_path(start.model))
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
    if start.adapter is not None:
        merge_adapter(network, start.adapter, start.model)


def _texts() -> list[str]:
    """What the tokenizer must hold whole: the prompts and every label of every set."""
    texts = [f"{SYSTEM} USER: "]
    texts += [attribute_sentence({"age": "20-29", "gender": "female", "race": "Asian"})]
    for labels in LABEL_SETS.values():
        texts += [f"\n{emotion_question(labels)} ASSISTANT:", *(f" {label}" for label in labels)]
    return texts * 4


def _calibrated(
    network: EmoLlama, prompter: Prompter, valid: Examples, labels: tuple[str, ...], team: Team
) -> tuple[EmoLlama, Scores]:
    """Fits the temperature on the validation faces in float32, as inference computes."""
    network = network.float()
    tuner = InstructionTuner(network, prompter, labels)
    log_scores = class_scores(tuner.to(team.device), valid, team, "float32")
    temperature = fit_temperature(log_scores, valid.labels)
    config = network.config.model_copy(update={"temperature": round(temperature, 4)})
    network.config = config
    return network, classification_scores(_softmax(log_scores / config.temperature), valid.labels)


def fit_temperature(log_scores: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """The temperature at which the mean confidence equals the accuracy (expectation consistency, Clarté
    et al. 2023). Where labels are noisy and were smoothed, the one of least negative log-likelihood
    (Guo et al. 2017) leaves the middle of the scale overconfident, for the sake of its ends."""
    accuracy = float((log_scores.argmax(1) == truth).mean())

    def excess(log_temperature: float) -> float:
        confidence = _softmax(log_scores / np.exp(log_temperature)).max(1)
        return float(confidence.mean()) - accuracy

    low, high = _LOG_TEMPERATURES
    if excess(low) <= 0 or excess(high) >= 0:  # as sure as it may be, and still not sure enough
        return float(np.exp(low if excess(low) <= 0 else high))
    return float(np.exp(brentq(excess, low, high)))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    out: NDArray[np.float64] = shifted / shifted.sum(1, keepdims=True)
    return out
