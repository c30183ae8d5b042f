"""Whose fault an error is: an accelerator's, or that of what it was given."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from emolake.pipeline.errors import DeviceFailed, in_a_line

DEVICE_FAILED = b"device failed: "
"""What a child's answer begins with where the device is to blame; no Arrow stream and no JSON does so."""

_OF_DEVICE = re.compile(
    r"(CUDA|CUDA driver|CUDA unknown|cuDNN|NCCL|HIP) error|CUDNN_STATUS_|CUBLAS_STATUS_|device-side assert"
    r"|No CUDA GPUs are available|CUDA driver initialization failed|cudaGetDeviceCount"
    r"|Triton Error \[CUDA\]|CUDA failure",
    re.I,
)
_OF_INPUT = re.compile(
    r"CUDNN_STATUS_(NOT_SUPPORTED|BAD_PARAM)|CUBLAS_STATUS_(NOT_SUPPORTED|INVALID_VALUE)"
    r"|CUDA error: invalid (configuration )?argument|CUBLAS_STATUS_NOT_INITIALIZED",
    re.I,
)
"""Shapes that no kernel does, on any device; the last is mostly memory."""
_OF_MEMORY = re.compile(r"out of memory|allocate memory|ALLOC_FAILED", re.I)


def is_of_memory(told: str) -> bool:
    """Whether an error's words say that memory ran out, which is the batch's matter."""
    return bool(_OF_MEMORY.search(told))


def is_of_library(error: Exception) -> bool:
    """Whether what computes raised it: onnxruntime's errors are no RuntimeError."""
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")


def is_of_device(error: Exception, *, starts: bool = False) -> bool:
    """Whether the device itself fails: after such an error a CUDA process answers every call with it. starts:
    while networks are loaded, where others' words for it may stand in an error of ours."""
    import torch

    told = str(error)
    # An endpoint, and a file's name, may tell of devices too.
    if not (starts or is_of_library(error)) or is_of_memory(told):
        return False
    if _OF_INPUT.search(told):
        return False
    return isinstance(error, torch.AcceleratorError) or bool(_OF_DEVICE.search(told))


def here() -> str:
    """This machine, which of Ray's nodes it is, and the GPUs of it that this actor has."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return socket.gethostname()
    has = ",".join(map(str, ray.get_gpu_ids()))
    gpus = f", GPU {has}" if has else ""
    return f"{socket.gethostname()} (node {ray.get_runtime_context().get_node_id()}{gpus})"


def device_failed(told: str) -> DeviceFailed:
    return DeviceFailed(f"the device of {here()} failed: {in_a_line(told, 200)}")


def in_hand(failed: DeviceFailed, segments: Sequence[Mapping[str, Any]]) -> DeviceFailed:
    """The same, with what it was given (rows with uri and segment): one input may break every device."""
    first = segments[0]
    more = f" and {len(segments) - 1} more" if len(segments) > 1 else ""
    return DeviceFailed(
        f"{failed}, at {in_a_line(first['uri'], 300)} segment {first['segment']}{more}"
    )


def blame_device(error: Exception, *, starts: bool = False) -> None:
    """DeviceFailed where the device is to blame."""
    if is_of_device(error, starts=starts):
        raise device_failed(str(error)) from error
