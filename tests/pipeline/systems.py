"""Tiny models of the sister systems with random weights, as folders that `--model` takes."""

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from pipeline.models.catalog import CONFIG, TOKENIZER, WEIGHTS
from pipeline.models.config import ClipConfig, EmolaConfig, LanguageConfig, ModelConfig
from pipeline.models.emola import Emola
from pipeline.models.prompts import train_tokenizer

LANGUAGE = LanguageConfig(vocab_size=400, width=32, depth=2, heads=2, mlp_hidden=64)
LANDMARK_DIM = 24


def save_random(folder: Path, config: ModelConfig, network: nn.Module) -> Path:
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(config.model_dump_json())
    train_tokenizer(["happiness sadness anger fear disgust surprise neutral AU12."], 390).save(
        str(folder / TOKENIZER)
    )
    return folder


def random_emola(folder: Path) -> Path:
    torch.manual_seed(0)
    config = EmolaConfig(
        name="random-emola",
        trained=False,
        vision=ClipConfig(image_size=56, patch_size=14, width=32, depth=3, heads=2, mlp_hidden=64),
        language=LANGUAGE,
        landmark_dim=LANDMARK_DIM,
    )
    return save_random(folder, config, Emola(config))


def landmark_network(path: Path, dim: int = LANDMARK_DIM) -> Path:
    """In the place of 2d106det: mean colours through a random matrix."""
    torch.manual_seed(1)
    matrix = helper.make_tensor("w", TensorProto.FLOAT, [3, dim], torch.randn(3 * dim).tolist())
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["data"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["fc1"]),
        ],
        "landmarks",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 192, 192])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, dim])],
        [matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path
