"""Descriptions written by a model behind an OpenAI-compatible endpoint, from the face's pictures.

Whatever comes back is checked against the label that people gave: an answer of another label, or none at
all, is asked for again and at last dropped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from emolake.pipeline.labels import canonical
from emolake.pipeline.storage.chat import ChatConfig, ChatEndpoint, NoAnswer, picture_part

_SHORTEST, _LONGEST = 20, 1200  # characters of a description
_ROLE = (
    "You write training data for a model that reads facial expressions. You are shown pictures of one "
    "face, in time order, and the expression that human annotators saw in it. Describe what is visible of "
    "that expression: brows, eyes, cheeks, mouth, gaze, how it changes. Two to four sentences, no guess "
    "about identity, health or cause. If the pictures do not show that expression, name the one that they "
    'do show. Reply with JSON alone: {"label": one of the given labels, "description": text}.'
)


@dataclass(frozen=True, repr=False)
class EndpointConfig(ChatConfig):
    """attempts: for an answer that passes."""

    concurrency: int = 8
    attempts: int = 3


@dataclass(frozen=True)
class Ask:
    """key: names the example for good; pictures: encoded as PNG."""

    key: str
    pictures: list[bytes]
    label: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """description None: dropped, and `reason` says why in a word or two. unanswered: the endpoint failed;
    another run may ask again."""

    key: str
    description: str | None
    reason: str | None
    unanswered: bool
    requests: int
    input_tokens: int
    output_tokens: int


class Endpoint:
    """A client that many threads share."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._chat = ChatEndpoint(config)

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """In the order in which they come; at most twice `concurrency` are held at a time."""
        running: set[Future[Reply]] = set()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            try:
                for ask in asks:
                    running.add(pool.submit(self.reply, ask))
                    if len(running) >= 2 * self.config.concurrency:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def reply(self, ask: Ask) -> Reply:
        """UserError where the endpoint refuses us at all: a wrong key or model is no example's fault."""
        spent = Counter(requests=0, input_tokens=0, output_tokens=0)
        unfit: Unfit | None = None
        for _ in range(self.config.attempts):
            try:
                made = self._chat.complete(
                    _messages(ask, unfit), spent, response_format={"type": "json_object"}
                )
            except NoAnswer as error:
                return Reply(ask.key, None, str(error), True, **spent)
            try:
                return Reply(ask.key, checked(made.text, ask), None, False, **spent)
            except Unfit as error:
                unfit = error
        return Reply(ask.key, None, unfit.kind if unfit else None, False, **spent)


class Unfit(ValueError):
    """A reply that is of no use, and why; kind: by what it is counted."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def _messages(ask: Ask, unfit: Unfit | None) -> list[Any]:
    asked = f"Labels: {', '.join(ask.labels)}. The annotators saw: {ask.label}."
    if unfit is not None:
        asked += f" An earlier reply was of no use: {unfit}."
    pictures = [picture_part(data) for data in ask.pictures]
    return [
        {"role": "system", "content": _ROLE},
        {"role": "user", "content": [{"type": "text", "text": asked}, *pictures]},
    ]


def checked(text: str, ask: Ask) -> str:
    """The description of a reply. Unfit says what is wrong with it: no JSON, another label, too short or
    too long, or words that name another label of the set and not the true one."""
    told = _first_object(text)
    label = canonical(str(told.get("label", "")))
    if label != ask.label:
        raise Unfit("another label", f"its label is {label or 'missing'!r} and not {ask.label!r}")
    description = " ".join(str(told.get("description", "")).split())
    if not _SHORTEST <= len(description) <= _LONGEST:
        raise Unfit("too short or too long", f"a description of {len(description)} characters")
    words = {canonical(word.strip(".,;:!?()\"'")) for word in description.split()}
    others = (set(ask.labels) - {ask.label}) & words
    if others and ask.label not in words:
        named = sorted(others)[0]
        raise Unfit("another label", f"its description names {named!r} and not {ask.label!r}")
    return description


def _first_object(text: str) -> dict[str, Any]:
    """Models like to put their JSON between fences and kind words."""
    at = text.find("{")
    try:
        told, _ = json.JSONDecoder().raw_decode(text[at:] if at >= 0 else "")
    except json.JSONDecodeError:
        raise Unfit("no JSON", "it holds no whole JSON object") from None
    return dict(told)
