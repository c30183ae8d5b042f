"""An HTTP proxy in front of the S3 server that answers badly: what object storage is like at 3 a.m."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Mood:
    """Part of the requests that meet each fault."""

    error: float = 0.0  # 500 or 503
    reset: float = 0.0  # no answer, connection reset; for a PUT after the server has done it
    truncate: float = 0.0  # half of a body, then the end
    delay: float = 0.0  # a second late
    denied: bool = False
    met: Counter[str] = field(default_factory=Counter)


class BadProxy:
    """Listens on a free port until closed. `mood` may change while it runs."""

    def __init__(self, upstream: str, mood: Mood, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.mood = mood
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                proxy.answer(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self) -> str:
        mood = self.mood
        with self._lock:
            draw = self._rng.random()
            for name in ("error", "reset", "truncate", "delay"):
                draw -= getattr(mood, name)
                if draw < 0:
                    break
            else:
                name = "none"
            mood.met[name] += 1
        return name

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = self._body(request)
        fault = self._fault()
        if self.mood.denied:
            self._say(request, 403, _xml("AccessDenied"))
            return
        if fault == "error":
            code = 500 if self.mood.met["error"] % 2 else 503
            self._say(request, code, _xml("InternalError" if code == 500 else "SlowDown"))
            return
        if fault == "delay":
            time.sleep(1.0)
        connection = http.client.HTTPConnection(*self.upstream, timeout=60)
        headers = {k: v for k, v in request.headers.items() if k.lower() != "connection"}
        connection.request(request.command, request.path, body=body, headers=headers)
        response = connection.getresponse()
        payload = response.read()
        connection.close()
        if fault == "reset":
            _reset(request)
            return
        request.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                request.send_header(name, value)
        length = response.getheader("content-length")
        head = request.command == "HEAD"
        request.send_header("content-length", str(length if head and length else len(payload)))
        request.end_headers()
        if head:
            return
        if fault == "truncate" and len(payload) > 1:
            request.wfile.write(payload[: len(payload) // 2])
            request.wfile.flush()
            _reset(request)
            return
        request.wfile.write(payload)

    @staticmethod
    def _body(request: BaseHTTPRequestHandler) -> bytes | None:
        if request.headers.get("expect", "").lower() == "100-continue":
            request.send_response_only(100)
            request.end_headers()
        if request.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(request.rfile.readline().split(b";")[0], 16):
                parts.append(request.rfile.read(size))
                request.rfile.readline()
            request.rfile.readline()
            del request.headers["transfer-encoding"]
            return b"".join(parts)
        length = int(request.headers.get("content-length", 0))
        return request.rfile.read(length) if length else None

    @staticmethod
    def _say(request: BaseHTTPRequestHandler, code: int, body: bytes) -> None:
        request.send_response_only(code)
        request.send_header("content-type", "application/xml")
        request.send_header("content-length", str(0 if request.command == "HEAD" else len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def _xml(code: str) -> bytes:
    return (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    )


def _reset(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    # Linger 0: the close sends RST instead of FIN.
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
