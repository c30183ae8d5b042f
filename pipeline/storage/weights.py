"""Weights into modules, strictly: what is missing, left over or misshapen is named and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emolake.pipeline.errors import UserError

_NAMED = 8


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` into `module`; UserError lists every tensor that does not fit."""
    check_fit(module, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    module.load_state_dict(dict(weights))


def check_fit(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """UserError lists the names that `module` misses, has not, or has in another shape."""
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - shapes.keys())
    extra = sorted(shapes.keys() - wanted.keys())
    misshapen = [
        f"{name} is {shapes[name]}, needs {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & shapes.keys())
        if shapes[name] != tuple(wanted[name].shape)
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
        for what, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise UserError("the weights do not fit the model; " + "; ".join(problems))


def fill_from_files(
    module: nn.Module,
    files: list[Path],
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
) -> None:
    """Fills a module made under `empty_parameters`, file by file: the memory it takes is the model's
    own, and one file's. dtype_of: by name, of the floating-point tensors. UserError as `fill`'s, or where
    a file cannot be read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= {name: tuple(tensor.shape) for name, tensor in _read(file).items()}
    check_fit(module, shapes)
    for file in files:
        part = {
            name: tensor.to(device, dtype_of(name) if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in _read(file).items()
        }
        module.load_state_dict(part, strict=False, assign=True)
    module.to(device)  # buffers, which no file holds


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Modules made inside have parameters without storage; their buffers are computed as ever."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _read(file: Path) -> dict[str, Tensor]:
    """Mapped, not read: a tensor takes memory when it is touched."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
