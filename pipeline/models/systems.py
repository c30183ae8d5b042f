"""Published systems by name: where their parts lie, and under which terms. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from emolake.pipeline.config import read_yaml, validated
from emolake.pipeline.errors import UserError

_SYSTEMS = Path(__file__).with_name("systems.yaml")
PARTS = ("source", "base", "vision", "question_tokenizer")


class System(BaseModel):
    """One of systems.yaml. family: whose layout it is converted from; None where it needs no conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["llama-vid", "emola", "emotion-llama"] | None = None
    source: str | None = None
    base: str | None = None
    vision: str | None = None
    question_tokenizer: str | None = None
    asked: str | None = None
    licence: str
    terms: str


@cache
def systems() -> dict[str, System]:
    told = read_yaml(_SYSTEMS, "systems")
    return {name: validated(System, of, name) for name, of in told.items()}


def system(name: str, own: Mapping[str, str | None]) -> System:
    """A published system; own: places of parts that the user names instead. UserError where it is unknown, or
    a part is missing that only its authors hand out."""
    if name not in systems():
        raise UserError(f"models get {name}: known are {', '.join(systems())}")
    found = systems()[name].model_copy(update={part: at for part, at in own.items() if at})
    if found.family is None:
        for part, at in own.items():
            if at and part != "source":
                raise UserError(
                    f"models get {name} is no conversion: leave --{part.replace('_', '-')} out"
                )
    if found.source is None:
        raise UserError(f"models get {name}: name with --source {found.asked}")
    return found
