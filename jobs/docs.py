"""Generates docs/configuration.md from the option tree: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel

from pipeline.config import Config

_HEAD = """# Configuration

Generated from `pipeline/config.py` by `make docs`. Sources, each winning over the ones before:
defaults, `--config FILE` (YAML), the environment (`EMOLAKE_FACES__MIN_FACE=32`), named options
(`--model`, `--corpus`), `--set faces.min_face=32`. An unknown key is an error that names the nearest
valid one.

| key | default | meaning |
| --- | --- | --- |
"""


def configuration_reference() -> str:
    """The whole file."""
    return _HEAD + "".join(_rows(Config, ""))


def _rows(kind: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _rows(inner, f"{prefix}{name}.")
        else:
            rows.append(f"| `{prefix}{name}` | `{field.default}` | {field.description} |\n")
    return rows


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(configuration_reference())
