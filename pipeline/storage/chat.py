"""An OpenAI-compatible endpoint (vLLM, SGLang, or anyone's): requests that keep to a rate, asked again."""

from __future__ import annotations

import base64
import itertools
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from emolake.pipeline.errors import UserError, in_a_line

ENDPOINT_KEY = "OPENAI_API_KEY"
"""The variable that holds the key, as the API's own clients have it."""
_LONGEST_PAUSE_S = 60.0
_AWAY = (502, 503, 504)


@dataclass(frozen=True)
class ChatConfig:
    """url: base of the API; key: secret; timeout_s: of one request; retries: of a request that failed by
    itself (too many requests, a server's error, silence); patience_s: for how long an endpoint that is away,
    or has no time for us, is asked again in any case."""

    url: str
    model: str
    key: str
    requests_per_minute: float | None = None
    timeout_s: float = 60.0
    retries: int = 5
    patience_s: float = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url}, {self.model})"


class NoAnswer(Exception):
    """The endpoint gave none to this request, for all our patience. away: it is the endpoint's state and not
    this request that is to blame."""

    def __init__(self, told: str, *, away: bool = False) -> None:
        super().__init__(told)
        self.away = away


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
            api_key=config.key,
            timeout=config.timeout_s,
            max_retries=0,  # ours, so that they are counted and keep to the rate
        )
        self._turn = _Turns(config.requests_per_minute)
        self._lock = threading.Lock()
        self.spent = Counter[str]()

    def complete(
        self, messages: list[Any], spent: Counter[str] | None = None, **options: Any
    ) -> Any:
        """The first choice of the answer, None where there is none. spent: counts this request's too.
        NoAnswer; UserError where the endpoint refuses us at all, as a wrong key or model is no request's
        fault."""
        openai, config = self._openai, self._config
        passing = (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError)
        refusing = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        started = time.monotonic()
        for tried in itertools.count():
            self._turn()
            self._count(spent, {"requests": 1})
            try:
                made = self._client.chat.completions.create(
                    model=config.model, messages=messages, **options
                )
                break
            except passing as error:
                status = getattr(error, "status_code", None)
                away = not isinstance(error, openai.InternalServerError) or status in _AWAY
                patient = away and time.monotonic() - started < config.patience_s
                if tried >= config.retries and not patient:
                    told = f"{type(error).__name__} after {tried} retries"
                    raise NoAnswer(told, away=away) from None
                time.sleep(_pause(tried, error))
            except refusing as error:
                raise UserError(
                    f"{config.url} refuses the request (HTTP {error.status_code}); check the key and the "
                    f"model {config.model}"
                ) from None
            except openai.OpenAIError as error:
                raise NoAnswer(f"{type(error).__name__}: {in_a_line(error, 200)}") from None
        if made.usage is not None:
            read, written = made.usage.prompt_tokens, made.usage.completion_tokens
            self._count(spent, {"input_tokens": read, "output_tokens": written})
        return made.choices[0] if made.choices else None

    def _count(self, spent: Counter[str] | None, told: dict[str, int]) -> None:
        with self._lock:
            self.spent.update(told)
            if spent is not None:
                spent.update(told)


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
    if told.replace(".", "", 1).isdigit():
        return min(float(told), _LONGEST_PAUSE_S)
    return min(random.uniform(0.25, 0.75) * 2 ** min(tried, 10), _LONGEST_PAUSE_S)  # noqa: S311
