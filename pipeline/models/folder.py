"""Model folders in and out of memory; what a folder holds stands in `catalog`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pipeline.errors import UserError
from pipeline.models.catalog import (
    CARD,
    CONFIG,
    QUESTION_TOKENIZER,
    TOKENIZER,
    WEIGHTS,
    model_folder,
    model_revision,
)
from pipeline.models.config import EmoLlamaConfig
from pipeline.models.emo_llama import EmoLlama
from pipeline.models.loading import fill
from pipeline.models.prompts import Prompter, read_tokenizer

QUESTION_LIMIT = 256  # tokens of the instruction that LLaMA-VID's Q-Former reads


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, with what names it in every row it writes."""

    name: str
    revision: str
    config: EmoLlamaConfig
    network: EmoLlama
    prompter: Prompter


def load_model(name_or_path: str, device: str = "cpu", attention: str = "sdpa") -> LoadedModel:
    """Loads a model folder strictly, in float32 on a CPU and bfloat16 on a GPU, ready to infer."""
    folder = model_folder(name_or_path)
    config = EmoLlamaConfig.read(folder)
    network = EmoLlama(config, attention)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    fill(network, weights)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    network = network.to(device=device, dtype=dtype).eval()
    if config.vision.kind == "conv_vit" and device == "cpu":
        network.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedModel(
        name=config.name,
        revision=model_revision(folder),
        config=config,
        network=network,
        prompter=read_prompter(folder),
    )


def read_prompter(folder: Path) -> Prompter:
    """The folder's tokenizers; one file serves both the language model and the Q-Former if alone."""
    tokenizer = read_tokenizer(folder / TOKENIZER)
    question = folder / QUESTION_TOKENIZER
    asker = read_tokenizer(question) if question.exists() else tokenizer
    return Prompter(tokenizer, asker, QUESTION_LIMIT)


def save_model(folder: Path, network: EmoLlama, tokenizer: Tokenizer, card: str) -> None:
    """Writes a model folder with weights as fp16 (integers as they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(network.config.model_dump_json(indent=1) + "\n")
    tokenizer.save(str(folder / TOKENIZER))
    (folder / CARD).write_text(card)
