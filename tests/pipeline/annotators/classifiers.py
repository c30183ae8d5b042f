"""Small image classifiers as others would bring them: a folder of `transformers`, and an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OWN_NAMES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
SIZE = 32


def vit_folder(
    folder: Path,
    names: tuple[str, ...] = OWN_NAMES,
    dtype: torch.dtype = torch.float32,
    **processor: object,
) -> Path:
    """A ViT of random weights that tells `names`."""
    torch.manual_seed(3)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=SIZE, patch_size=8, id2label=dict(enumerate(names)),
        label2id={name: k for k, name in enumerate(names)},
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(40)  # else all classes are alike
    model.to(dtype).save_pretrained(folder)
    told = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": SIZE, "width": SIZE}, "do_normalize": True, "do_rescale": True,
        "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(told | processor))
    return folder


def onnx_file(
    path: Path,
    outputs: int,
    size: int | str = SIZE,
    batch: int | str = "n",
    data: str | None = None,
    weights: NDArray[np.float32] | None = None,
) -> Path:
    """Means of each channel, times a matrix (in the file `data`): (N, 3, S, S) -> (N, outputs)."""
    if weights is None:
        weights = np.random.default_rng(5).normal(size=(3, outputs)).astype(np.float32) * 4
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    kept = {"save_as_external_data": True, "location": data, "size_threshold": 0} if data else {}
    onnx.save(made, path, **kept)
    return path
