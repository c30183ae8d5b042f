"""Networks from ONNX files, by onnxruntime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.errors import UserError
from emolake.pipeline.models.classifier import ClassifierConfig
from emolake.pipeline.storage.onnx import opened


def described_network(config: ClassifierConfig, device: str = "cpu") -> OnnxNetwork:
    """A classifier's network. UserError where the file is not of the sizes described."""
    made = OnnxNetwork(str(config.weights), f"model {config.name}:", device)
    if made.side not in (None, config.size):
        raise UserError(
            f"model {config.name}: {config.weights.name} reads pictures of {made.side} pixels, described are "
            f"{config.size}"
        )
    if made.outputs not in (None, len(config.classes)):
        raise UserError(
            f"model {config.name}: {config.weights.name} gives {made.outputs} values a picture, "
            f"{len(config.classes)} labels are described"
        )
    return made


_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork:
    """what: names the file's part in the run, for errors. side: of the square that it reads, None where any
    will do; outputs: how many values it gives a picture, None where the file leaves that open."""

    def __init__(self, path: str, what: str, device: str = "cpu") -> None:
        self._session = opened(path, what, device)
        inputs = self._session.get_inputs()
        given, shape = inputs[0], inputs[0].shape
        fits = len(inputs) == 1 and len(shape) == 4 and 3 in (shape[1], shape[3])
        if fits:
            self._channels_last = shape[1] != 3
            sides = {
                n for n in (shape[1:3] if self._channels_last else shape[2:]) if isinstance(n, int)
            }
            fits = len(sides) < 2 and (shape[0] == 1 or not isinstance(shape[0], int))
        if not fits or given.type not in _TYPES:
            raise UserError(
                f"{what} {path} does not read one or any number of square RGB pictures as float and nothing "
                f"else: its inputs are {', '.join(f'{one.name} {one.type} {one.shape}' for one in inputs)}"
            )
        self._input = given.name
        self._dtype = _TYPES[given.type]
        self._takes_many = not isinstance(shape[0], int)
        self.side: int | None = sides.pop() if sides else None
        widths = [out.shape[1:] for out in self._session.get_outputs()]
        told = all(isinstance(size, int) for width in widths for size in width)
        self.outputs: int | None = (
            sum(int(np.prod(width)) for width in widths) if told and widths else None
        )

    def __call__(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 3, S, S) -> (N, K) float32: all its outputs, one after the other."""
        given = pictures.transpose(0, 2, 3, 1) if self._channels_last else pictures
        given = np.ascontiguousarray(given, self._dtype)
        parts = np.array_split(given, 1 if self._takes_many else len(given))
        answers = [self._session.run(None, {self._input: part}) for part in parts]
        return np.concatenate(
            [
                np.concatenate([np.asarray(out).reshape(len(part), -1) for out in told], axis=1)
                for told, part in zip(answers, parts, strict=True)
            ]
        ).astype(np.float32)
