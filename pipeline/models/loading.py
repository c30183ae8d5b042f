"""Weights into modules, strictly: what is missing, left over or misshapen is named and refused."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.errors import UserError


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` into `module`; UserError lists every tensor that does not fit."""
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    extra = sorted(weights.keys() - wanted.keys())
    misshapen = [
        f"{name} is {tuple(weights[name].shape)}, needs {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise UserError("the weights do not fit the model; " + "; ".join(problems))
    module.load_state_dict(dict(weights))
