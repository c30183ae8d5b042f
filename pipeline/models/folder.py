"""Model folders in and out of memory; what a folder holds stands in `catalog`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.initialization import no_init_weights

from emolake.pipeline.models.catalog import (
    CARD,
    CONFIG,
    QUESTION_TOKENIZER,
    TOKENIZER,
    WEIGHTS,
    model_path,
    model_revision,
    weight_files,
)
from emolake.pipeline.models.config import EmoLlamaConfig, ModelConfig
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.precision import Precision, chosen, weight_dtypes
from emolake.pipeline.models.prompts import Prompter, read_tokenizer
from emolake.pipeline.storage.weights import empty_parameters, fill_from_files

QUESTION_LIMIT = 256  # tokens of the instruction that LLaMA-VID's Q-Former reads

Network = TypeVar("Network", bound=nn.Module)
Config = TypeVar("Config", bound=ModelConfig)


@dataclass(frozen=True)
class LoadedModel(Generic[Config, Network]):
    """A model ready for use, with what names it in every row it writes."""

    name: str
    revision: str
    config: Config
    network: Network
    prompter: Prompter


def load_model(
    name_or_path: str,
    device: str = "cpu",
    precision: Precision | None = None,
    attention: str = "sdpa",
) -> LoadedModel[EmoLlamaConfig, EmoLlama]:
    """An EMO-LLaMA's or LLaMA-VID's folder, ready to infer; see `load_network`."""
    folder = model_path(name_or_path)
    config = EmoLlamaConfig.read(folder)
    network = load_network(folder, lambda: EmoLlama(config, attention), device, precision)
    network.vision.fuse()
    if config.vision.kind == "conv_vit" and device == "cpu":
        network.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedModel(config.name, model_revision(folder), config, network, read_prompter(folder))


def load_network(
    folder: Path, make: Callable[[], Network], device: str, precision: Precision | None = None
) -> Network:
    """Loads a folder's weights strictly, as the precision wants them (see `precision`), ready to infer.

    Parameters get their storage from the files alone, so a large model takes its own size once.
    """
    with empty_parameters(), no_init_weights():
        network = make()
    dtypes = weight_dtypes(network, chosen(precision, device))
    fill_from_files(network, weight_files(folder), torch.device(device), dtypes)
    return network.eval().requires_grad_(False)


def read_prompter(folder: Path) -> Prompter:
    """The folder's tokenizers; one file serves both the language model and the Q-Former if alone."""
    tokenizer = read_tokenizer(folder / TOKENIZER)
    question = folder / QUESTION_TOKENIZER
    asker = read_tokenizer(question) if question.exists() else tokenizer
    return Prompter(tokenizer, asker, QUESTION_LIMIT)


def save_model(folder: Path, network: EmoLlama, prompter: Prompter, card: str) -> None:
    """Writes a model folder with weights as fp16 (integers as they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(network.config.model_dump_json(indent=1) + "\n")
    prompter.tokenizer.save(str(folder / TOKENIZER))
    if prompter.question_tokenizer is not prompter.tokenizer:
        prompter.question_tokenizer.save(str(folder / QUESTION_TOKENIZER))
    (folder / CARD).write_text(card)
