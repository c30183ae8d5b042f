"""Descriptions written by a model behind an OpenAI-compatible endpoint, from the face's pictures.

Whatever comes back is checked against the label that people gave: an answer of another label, or none at
all, is asked for again and at last dropped.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import canonical

_LONGEST_PAUSE_S = 60.0
_SHORTEST, _LONGEST = 20, 1200  # characters of a description
_ROLE = (
    "You write training data for a model that reads facial expressions. You are shown pictures of one "
    "face, in time order, and the expression that human annotators saw in it. Describe what is visible of "
    "that expression: brows, eyes, cheeks, mouth, gaze, how it changes. Two to four sentences, no guess "
    "about identity, health or cause. If the pictures do not show that expression, name the one that they "
    'do show. Reply with JSON alone: {"label": one of the given labels, "description": text}.'
)


@dataclass(frozen=True)
class EndpointConfig:
    """url: base of the API; key: secret; timeout_s: of one request; retries: of a request that failed by
    itself (too many requests, a server's error, silence); attempts: for an answer that passes."""

    url: str
    model: str
    key: str
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 60.0
    retries: int = 5
    attempts: int = 3

    def __repr__(self) -> str:
        return f"EndpointConfig({self.url}, {self.model})"


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
        try:
            import openai
        except ImportError:
            raise UserError("--endpoint needs a client: pip install 'emolake[instruct]'") from None
        self._openai = openai
        self.config = config
        self._client = openai.OpenAI(
            base_url=config.url,
            api_key=config.key,
            timeout=config.timeout_s,
            max_retries=0,  # ours, so that they are counted and keep to the rate
        )
        self._turn = _Turns(config.requests_per_minute)

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
        spent = {"requests": 0, "input_tokens": 0, "output_tokens": 0}
        unfit: Unfit | None = None
        for _ in range(self.config.attempts):
            try:
                text = self._asked(_messages(ask, unfit), spent)
            except _NoAnswer as error:
                return Reply(ask.key, None, str(error), True, **spent)
            try:
                return Reply(ask.key, checked(text, ask), None, False, **spent)
            except Unfit as error:
                unfit = error
        return Reply(ask.key, None, unfit.kind if unfit else None, False, **spent)

    def _asked(self, messages: list[Any], spent: dict[str, int]) -> str:
        openai = self._openai
        passing = (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError)
        refusing = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        for tried in itertools.count():
            self._turn()
            spent["requests"] += 1
            try:
                made = self._client.chat.completions.create(
                    model=self.config.model,
                    messages=messages,
                    response_format={"type": "json_object"},
                )
                break
            except passing as error:
                if tried == self.config.retries:
                    raise _NoAnswer(f"{type(error).__name__} after {tried} retries") from None
                time.sleep(_pause(tried, error))
            except refusing as error:
                raise UserError(
                    f"{self.config.url} refuses the request (HTTP {error.status_code}); check the key and "
                    f"the model {self.config.model}"
                ) from None
            except openai.OpenAIError as error:
                raise _NoAnswer(type(error).__name__) from None
        if made.usage is not None:
            spent["input_tokens"] += made.usage.prompt_tokens
            spent["output_tokens"] += made.usage.completion_tokens
        return (made.choices[0].message.content or "") if made.choices else ""


class Unfit(ValueError):
    """A reply that is of no use, and why; kind: by what it is counted."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class _NoAnswer(Exception):
    """The endpoint gave none, for all our patience."""


class _Turns:
    """Spaces requests evenly so that no minute holds more than so many."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        if not self._interval:
            return
        with self._lock:
            now = time.monotonic()
            mine = max(self._next, now)
            self._next = mine + self._interval
        time.sleep(max(mine - now, 0.0))


def _pause(tried: int, error: Exception) -> float:
    """Seconds: what the server asks for, else exponential with jitter; at most a minute."""
    response = getattr(error, "response", None)
    told = response.headers.get("retry-after", "") if response is not None else ""
    if told.replace(".", "", 1).isdigit():
        return min(float(told), _LONGEST_PAUSE_S)
    return min(random.uniform(0.25, 0.75) * 2**tried, _LONGEST_PAUSE_S)  # noqa: S311


def _messages(ask: Ask, unfit: Unfit | None) -> list[Any]:
    asked = f"Labels: {', '.join(ask.labels)}. The annotators saw: {ask.label}."
    if unfit is not None:
        asked += f" An earlier reply was of no use: {unfit}."
    pictures = [
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()},
        }
        for data in ask.pictures
    ]
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
