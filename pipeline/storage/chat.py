"""An OpenAI-compatible endpoint (vLLM, SGLang, or anyone's): requests that keep to a rate, asked again."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from emolake.pipeline.errors import UserError, in_a_line

ENDPOINT_KEY = "OPENAI_API_KEY"
"""The variable that holds the key, as the API's own clients have it."""
_LONGEST_PAUSE_S = 60.0
_LONGEST_BODY = 1 << 20
_PASSING = (408, 409, 429)
_AWAY = (*_PASSING, 502, 503, 504)
_REFUSING = (401, 403, 404)


@dataclass(frozen=True)
class ChatConfig:
    """url: base of the API; key: secret, or empty; timeout_s: of one request; retries: of a request that
    failed by itself (too many requests, a server's error, silence); patience_s: for how long an endpoint that
    is away, or has no time for us, is asked again in any case."""

    url: str
    model: str
    key: str
    requests_per_minute: float | None = None
    timeout_s: float = 60.0
    retries: int = 5
    patience_s: float = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url}, {self.model})"


def check_client() -> None:
    """UserError where no endpoint could be asked from here: no client, or a key that is none."""
    if importlib.util.find_spec("openai") is None:
        raise UserError("an endpoint needs a client: pip install 'emolake[endpoint]'")
    key = os.environ.get(ENDPOINT_KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"${ENDPOINT_KEY} is no key: it holds characters that a header cannot")


class NoAnswer(Exception):
    """The endpoint gave none to this request, for all our patience. away: it is the endpoint's state and not
    this request that is to blame."""

    def __init__(self, told: str, *, away: bool = False) -> None:
        super().__init__(told)
        self.away = away


@dataclass(frozen=True)
class Answer:
    """alternatives: tokens that might have come first, with their log-probabilities, where they are told;
    cut: the limit of tokens ended it."""

    text: str
    alternatives: tuple[tuple[str, float], ...] = ()
    cut: bool = False


class ChatEndpoint:
    """A client that many threads share. spent: requests, input_tokens and output_tokens until now."""

    def __init__(self, config: ChatConfig) -> None:
        try:
            import openai
        except ImportError:
            raise UserError("an endpoint needs a client: pip install 'emolake[endpoint]'") from None
        self._openai = openai
        self._config = config
        self._client = openai.OpenAI(
            base_url=config.url,
            api_key=config.key or "none",  # the client wants one, engines of one's own do not
            max_retries=0,  # ours, so that they are counted and keep to the rate
            # What is sent goes where the user said, and nowhere else.
            http_client=openai.DefaultHttpxClient(follow_redirects=False, timeout=config.timeout_s),
        )
        self._turn = _Turns(config.requests_per_minute)
        self._lock = threading.Lock()
        self._answered_at: float | None = None
        self.spent = Counter[str]()

    def complete(
        self, messages: list[Any], spent: Counter[str] | None = None, **options: Any
    ) -> Answer:
        """spent: counts this request's too. NoAnswer; UserError where the endpoint refuses us at all, as a
        wrong key or model is no request's fault."""
        openai, config = self._openai, self._config
        started: float | None = None
        for tried in itertools.count():
            self._turn()
            started = started or time.monotonic()
            self._count(spent, {"requests": 1})
            try:
                told = self._told(messages, options)
                break
            except openai.OpenAIError as error:
                status = getattr(error, "status_code", None)
                # Others are answered: it is this request that it cannot answer.
                alone = self._answered_at is not None and self._answered_at > started
                if status in _REFUSING and self._answered_at is None:
                    raise UserError(
                        f"{config.url} refuses the request (HTTP {status}); check the key and the model "
                        f"{config.model}"
                    ) from None
                if status is not None and 300 <= status < 400:
                    raise UserError(
                        f"{config.url} sends us elsewhere (HTTP {status}); name that place, if it is to be"
                    ) from None
                silent = isinstance(error, openai.APIConnectionError)
                if not silent and status not in _PASSING and (status or 0) < 500:
                    words = in_a_line(error, 200)
                    words = words.replace(config.key, "...") if config.key else words
                    raise NoAnswer(f"{type(error).__name__}: {words}") from None
                away = (silent or status in _AWAY) and not alone
                patient = away and time.monotonic() - started < config.patience_s
                if tried >= config.retries and not patient:
                    why = f"{type(error).__name__} after {tried} retries"
                    raise NoAnswer(why, away=away) from None
                time.sleep(_pause(tried, error))
        self._answered_at = time.monotonic()
        usage = told.get("usage")
        if isinstance(usage, dict):
            for name, of_api in (("input_tokens", "prompt"), ("output_tokens", "completion")):
                count = usage.get(f"{of_api}_tokens")
                if isinstance(count, int) and count > 0:
                    self._count(spent, {name: count})
        return _parsed(told)

    def _told(self, messages: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        """The body, which comes within the time or not at all; the client's own limit is one of each read."""
        deadline = time.monotonic() + self._config.timeout_s
        body = b""
        asking = self._client.chat.completions.with_streaming_response.create(
            model=self._config.model, messages=messages, **options
        )
        with asking as response:
            try:
                for part in response.iter_bytes():
                    body += part
                    if time.monotonic() > deadline or len(body) > _LONGEST_BODY:
                        raise self._openai.APITimeoutError(request=response.http_request)
            except self._openai.OpenAIError:
                raise
            except Exception as error:
                # Of a body that breaks off the transport's own kinds come out.
                raise self._openai.APIConnectionError(request=response.http_request) from error
        try:
            told = json.loads(body)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise NoAnswer("what it answers is none of the API's")
        return told

    def _count(self, spent: Counter[str] | None, told: dict[str, int]) -> None:
        with self._lock:
            self.spent.update(told)
            if spent is not None:
                spent.update(told)


def _parsed(told: dict[str, Any]) -> Answer:
    """The first choice. NoAnswer where it is not of the API's form."""
    try:
        choice = told["choices"][0]
        text = choice["message"]["content"] or ""
        content = (choice.get("logprobs") or {}).get("content") or ()
        tops = (content[0].get("top_logprobs") or [content[0]]) if content else ()
        alternatives = tuple((str(one["token"]), float(one["logprob"])) for one in tops)
        if not isinstance(text, str):
            raise TypeError
        return Answer(text, alternatives, choice.get("finish_reason") == "length")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise NoAnswer("what it answers is none of the API's") from None


def picture_part(data: bytes, kind: str = "png") -> dict[str, Any]:
    """An encoded picture as a part of a message."""
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/{kind};base64," + base64.b64encode(data).decode()},
    }


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
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", told):
        # One that says so again and again is asked more and more seldom all the same.
        return min(max(float(told), 0.05 * 2 ** min(tried, 10)), _LONGEST_PAUSE_S)
    return min(random.uniform(0.25, 0.75) * 2 ** min(tried, 10), _LONGEST_PAUSE_S)  # noqa: S311
