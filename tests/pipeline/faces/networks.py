"""Detectors' networks small enough to be worked out by hand: what they tell of a cell is linear in its
mean colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Heads = Mapping[str, NDArray[np.float64]]
"""Name of an output -> (4, A, V): weights of red, green and blue and a constant, for each of A anchors of
a cell and each of V values."""

STRAIGHT = ((-0.9, -1.0), (0.9, -1.0), (0.0, 0.0), (-0.7, 1.0), (0.7, 1.0))
"""The five points of a face looked at straight, in strides from a cell, in the published order."""


def head(
    rng: np.random.Generator, anchors: int, constant: Sequence[float], scale: float
) -> NDArray[np.float64]:
    colours = rng.normal(0, scale, (3, anchors, len(constant)))
    return np.concatenate([colours, np.broadcast_to(constant, (1, *colours.shape[1:]))])


def onnx_detector(
    path: Path,
    heads: Heads,
    strides: Sequence[int],
    *,
    batch: int | str = "n",
    size: Sequence[int | str] = ("h", "w"),
    in_one_row: bool = False,
) -> Path:
    """(N, 3, H, W) -> for each head the outputs of all strides, (N, anchors, V); in_one_row:
    (N * anchors, V)."""
    nodes, constants, outputs = [], [], []
    for stride in strides:
        side = [stride, stride]
        nodes += [
            helper.make_node(
                "AveragePool", ["input"], [f"mean_{stride}"], kernel_shape=side, strides=side
            ),
            helper.make_node("Transpose", [f"mean_{stride}"], [f"rgb_{stride}"], perm=[0, 2, 3, 1]),
        ]
    for name, weights in heads.items():
        values = weights.shape[2]
        flat = weights.reshape(4, -1).astype(np.float32)
        row = np.array([-1, values] if in_one_row else [0, -1, values], np.int64)
        constants += [
            numpy_helper.from_array(flat[:3], f"{name}_w"),
            numpy_helper.from_array(flat[3], f"{name}_b"),
            numpy_helper.from_array(row, f"{name}_row"),
        ]
        for stride in strides:
            told = f"{name}_{stride}"
            nodes += [
                helper.make_node("MatMul", [f"rgb_{stride}", f"{name}_w"], [f"{told}_1"]),
                helper.make_node("Add", [f"{told}_1", f"{name}_b"], [f"{told}_2"]),
                helper.make_node("Reshape", [f"{told}_2", f"{name}_row"], [told]),
            ]
            shape = [f"rows_{told}", values] if in_one_row else [batch, f"rows_{told}", values]
            outputs.append(helper.make_tensor_value_info(told, TensorProto.FLOAT, shape))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, *size])
    graph = helper.make_graph(nodes, "cells", [given], outputs, constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), path
    )
    return path


def cell(picture: NDArray[np.float64], stride: int, row: int, column: int) -> NDArray[np.float64]:
    """What a head's weights are multiplied with: (4,)."""
    inside = picture[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
    return np.append(inside.mean((0, 1)), 1.0)


def mosaic(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Every 8 x 8 pixels of another colour, so that no two cells tell the same."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return np.ascontiguousarray(small.repeat(8, 0).repeat(8, 1)[:height, :width])


def best_of_each_pile(
    faces: list[tuple[float, list[float], list[float]]],
    threshold: float,
    border: float,
    whole: bool,
) -> list[tuple[float, list[float], list[float]]]:
    """(score, box, points) of each candidate -> those that greedy suppression keeps, best first. whole:
    whether overlaps are those of boxes in whole pixels."""
    kept: list[tuple[float, list[float], list[float]]] = []
    for face in sorted(faces, key=lambda face: -face[0]):
        if all(_iou(face[1], other[1], border, whole) <= threshold for other in kept):
            kept.append(face)
    return kept


def _iou(a: list[float], b: list[float], border: float, whole: bool) -> float:
    if whole:
        a, b = ([int(x), int(y), int(x) + int(u - x), int(y) + int(v - y)] for x, y, u, v in (a, b))
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + border)
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + border)
    areas = [(box[2] - box[0] + border) * (box[3] - box[1] + border) for box in (a, b)]
    return across * down / (sum(areas) - across * down)
