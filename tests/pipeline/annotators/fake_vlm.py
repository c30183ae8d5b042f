"""A vision-language model's server that tells probabilities, errs, stalls, lies, babbles and limits.

It sees how bright the first picture is and answers with the letter of that brightness.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import time
from collections import Counter
from http.server import ThreadingHTTPServer
from typing import Any

from emolake.pipeline.faces.encoding import decode_crop
from tests.local_server import JsonHandler

_TRICKLE = 100  # bytes


class FakeVlm(ThreadingHTTPServer):
    """mood: how it answers; key: what it wants, if anything; requests: bodies of all that was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mood = "tells"
        self.key: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.trickled = 0
        self.seen = Counter[str]()
        self.words: tuple[str, dict[str, float]] = ("", {})
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        pass  # whoever was stalled has gone

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def letter_of(pictures: list[bytes], letters: int) -> int:
    """Which answer is right: by the brightness of the first picture."""
    return min(int(decode_crop(pictures[0]).mean() / 256 * letters), letters - 1)


class _Handler(JsonHandler):
    server: FakeVlm

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        with self.server.lock:
            self.server.requests.append(asked)
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            self.server.seen[str(hash(body))] += 1
            times = self.server.seen[str(hash(body))]
        try:
            time.sleep(0.02)
            self._answer(asked, times)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _answer(self, asked: dict[str, Any], times: int) -> None:
        mood = self.server.mood
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.tell({"error": {"message": "who are you?"}}, 401)
        if mood == "limits" and times == 1:
            return self.tell({"error": {"message": "slowly"}}, 429, {"Retry-After": "0.1"})
        if mood == "errs" and times == 1:
            return self.tell({"error": {"message": "oops"}}, 500)
        if mood == "body":
            return self.tell(self.server.words[0].encode(), 200)
        if mood == "redirects":
            return self.tell({}, 307, {"Location": self.server.words[0]})
        if mood == "trickles":
            return self._trickle()
        if mood == "breaks off" and times == 1:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")
            self.wfile.flush()
            return self.connection.close()
        if mood == "stalls" and times == 1:
            time.sleep(3)
        if mood == "no logprobs" and "logprobs" in asked:
            return self.tell({"error": {"message": "logprobs are not supported"}}, 400)
        *pictures, text = asked["messages"][0]["content"]
        if "Answer with one letter" not in text["text"]:
            return self._told("The brows are raised. The mouth")
        letters = re.findall(r"^([A-Z])\. ", text["text"], re.M)
        data = [base64.b64decode(p["image_url"]["url"].partition(",")[2]) for p in pictures]
        right = letters[letter_of(data, len(letters))]
        if mood == "says":
            return self._told(self.server.words[0], self.server.words[1])
        if mood == "babbles":
            return self._told("What a face! I should say")
        if mood == "lies":
            return self._told("Z", {"Z": 0.99, "Y": 0.01})
        if mood == "no logprobs":
            return self._told(f"{right}.")
        others = {letter: 0.3 / (len(letters) - 1) for letter in letters if letter != right}
        return self._told(right, {right: 0.5, f" {right}": 0.2} | others)

    def _told(self, words: str, shares: dict[str, float] | None = None) -> None:
        logprobs = None
        if shares is not None:
            tops = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in shares.items()]
            logprobs = {"content": [tops[0] | {"top_logprobs": tops}]}
        cut = not words.endswith((".", "Z")) and len(words) > 2
        choice = {
            "index": 0, "finish_reason": "length" if cut else "stop", "logprobs": logprobs,
            "message": {"role": "assistant", "content": words},
        }  # fmt: skip
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
        told = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        self.tell(told | {"choices": [choice], "usage": usage}, 200)

    def _trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(_TRICKLE))
        self.end_headers()
        for _ in range(_TRICKLE):
            self.wfile.write(b" ")
            self.wfile.flush()
            self.server.trickled += 1
            time.sleep(0.1)
