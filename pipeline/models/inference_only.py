"""Imports of `transformers` without what inference never calls.

Its modelling modules import, besides themselves, torch's compiler, its distributed tensors and, where they
are installed, accelerate, torchao and scipy: half the time from `import` to a loaded small model.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_UNUSED = (
    "is_accelerate_available",
    "is_scipy_available",
    "is_torch_distributed_available",
    "is_torch_flex_attn_available",
    "is_torchao_available",
)
"""Optional parts of `transformers` that are left out as where they are not installed."""
_COMPILER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators that say how a function is to be compiled."""
_ALONE = f"{_COMPILER}._trace_wrapped_higher_order_op"
"""The one module of the compiler's that `transformers` calls, for attention masks."""


def import_for_inference() -> None:
    """From here on, for this process; nothing where it has imported `transformers`' models or the compiler
    before."""
    import torch

    if "transformers.modeling_utils" in sys.modules or _COMPILER in sys.modules:
        return
    try:
        _import_alone(_ALONE)
        marks = {name: _marked_if_loaded(getattr(torch.compiler, name)) for name in _MARKS}
    except (ImportError, AttributeError):
        return  # another torch has it elsewhere: everything is imported
    torch._dynamo = _Unloaded()  # type: ignore[assignment]
    for name, mark in marks.items():
        setattr(torch.compiler, name, mark)
    for place in ("transformers.utils.import_utils", "transformers.utils"):
        module = importlib.import_module(place)
        for name in _UNUSED:
            if hasattr(module, name):
                setattr(module, name, _no)


def _no(*_: Any, **__: Any) -> bool:
    return False


def _import_alone(name: str) -> None:
    """A module of a package, and not the package: whoever imports that one later has it whole."""
    package, _, own = name.rpartition(".")
    spec = importlib.util.find_spec(package.rpartition(".")[0])
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, package.rpartition(".")[2], f"{own}.py")
        alone = importlib.util.spec_from_file_location(name, file)
        if file.is_file() and alone is not None and alone.loader is not None:
            module = importlib.util.module_from_spec(alone)
            alone.loader.exec_module(module)
            sys.modules[name] = module
            return
    raise ImportError(name)


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _unmarked


class _Unloaded:
    """In the compiler's place until somebody imports it, which puts it here: how a function is to be compiled
    need not be noted where none is."""

    def __getattr__(self, name: str) -> Any:
        if name in _MARKS:
            return _unmarked
        return getattr(importlib.import_module(_COMPILER), name)


def _marked_if_loaded(mark: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(mark)
    def marked(*arguments: Any, **named: Any) -> Any:
        return (mark if _COMPILER in sys.modules else _unmarked)(*arguments, **named)

    return marked
