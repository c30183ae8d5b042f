"""ONNX files, opened by onnxruntime."""

from __future__ import annotations

import logging
from typing import Any

from emolake.pipeline.errors import UserError, in_a_line


def opened(path: str, what: str, device: str = "cpu") -> Any:
    """The file's onnxruntime.InferenceSession, of one thread. what: names the file's part in the run, for
    errors."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{what} needs onnxruntime: pip install 'emolake[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    there = onnxruntime.get_available_providers()
    wanted = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
    if wanted[0] not in there:
        logging.getLogger(__name__).warning(
            "%s %s runs on the CPU: onnxruntime here has no CUDA; install onnxruntime-gpu",
            what,
            path,
        )
    try:
        return onnxruntime.InferenceSession(
            path, options, providers=[name for name in wanted if name in there]
        )
    except Exception as error:  # the library raises its own kinds by the dozen
        raise UserError(f"{what} {path} is no ONNX model: {in_a_line(error, 200)}") from None
