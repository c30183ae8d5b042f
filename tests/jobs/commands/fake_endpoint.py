"""An OpenAI-compatible server for tests that errs, stalls, lies and babbles, by the label it is told.

`python fake_endpoint.py LOG` prints its port; LOG gets a line a request: time and label.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STALL_S = 4.0
seen: Counter[str] = Counter()


def answer(label: str, times: int) -> tuple[int, dict[str, str], str]:
    """Status, headers and the model's words for the times-th request about a picture of `label`."""
    good = json.dumps({"label": label, "description": f"The face shows {label}, one sees it well."})
    first = times == 1
    if label == "anger":
        lie = {"label": "happiness", "description": "A broad smile, the cheeks are lifted."}
        return 200, {}, json.dumps(lie)
    if label == "disgust":
        return 500, {}, ""
    if label == "fear" and first:
        return 200, {}, "What a face! I should say"
    if label == "happiness" and first:
        return 429, {"Retry-After": "0.2"}, ""
    if label == "sadness" and first:
        time.sleep(STALL_S)
    if label == "surprise" and first:
        contrary = {"label": label, "description": "The lips are pressed, in plain anger."}
        return 200, {}, json.dumps(contrary)
    return 200, {}, f"Gladly.\n```json\n{good}\n```"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, *pictures = asked["messages"][1]["content"]
        label = text["text"].split("annotators saw: ")[1].split(".")[0]
        picture = pictures[0]["image_url"]["url"]
        with Path(sys.argv[1]).open("a") as log:
            log.write(f"{time.time()} {label} {len(pictures)}\n")
        if self.headers["Authorization"] != "Bearer secret-key":
            return self._send(401, {}, {"error": {"message": "no"}})
        seen[picture] += 1
        status, headers, words = answer(label, seen[picture])
        message = {"role": "assistant", "content": words}
        self._send(
            status,
            headers,
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": asked["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 300, "completion_tokens": 40, "total_tokens": 340},
            },
        )
        return None

    def _send(self, status: int, headers: dict[str, str], body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass  # the client has lost patience

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
