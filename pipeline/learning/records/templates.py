"""Questions and answers from a file of templates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.models.prompts import Told

Kind = Literal["label", "reason", "description"]
KINDS: tuple[Kind, ...] = ("label", "reason", "description")
DEFAULT = Path(__file__).parent / "templates.yaml"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: tuple[str, ...] = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)


class Templates(BaseModel):
    """A file of templates; see the one that comes with the package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: _Part
    reason: _Part
    description: _Part
    typical: dict[str, str]

    @classmethod
    def read(cls, path: Path = DEFAULT) -> Templates:
        """UserError where it is no such file."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError:
            raise UserError(f"{path} cannot be read; name a file of templates") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML: {in_a_line(error)}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{path} is no file of templates: {where or 'the whole'}: {first['msg']}"
            ) from None

    def check(self, kind: Kind, labels: tuple[str, ...]) -> None:
        """UserError where the file cannot fill in some label's answer."""
        part: _Part = getattr(self, kind)
        lacking = [label for label in labels if label not in self.typical]
        if lacking and any("{typical}" in answer for answer in part.answers):
            raise UserError(f"the templates say nothing `typical` of {', '.join(lacking)}")
        try:
            for text in (*part.questions, *part.answers):
                text.format(labels="", label="", typical="")
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"templates: {kind}: {text!r} has an unknown {{field}}: {error}"
            ) from None

    def filled(self, kind: Kind, label: str, labels: tuple[str, ...], draw: str) -> Told:
        """A question and its answer, chosen by `draw`: the same text always chooses the same."""
        part: _Part = getattr(self, kind)
        number = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8], "big")
        question = part.questions[number % len(part.questions)]
        answer = part.answers[number // len(part.questions) % len(part.answers)]
        words = {
            "labels": ", ".join(labels),
            "label": label,
            "typical": self.typical.get(label, ""),
        }
        return Told(question.format(**words), answer.format(**words))
