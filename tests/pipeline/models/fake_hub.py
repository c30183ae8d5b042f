"""A hub's server: models by commit, as huggingface_hub asks; it counts, breaks off and refuses."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from http.server import ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.local_server import JsonHandler

Files = dict[str, bytes]


class FakeHub(ThreadingHTTPServer):
    """models: by name, the files of each revision, the newest last; gated: names that want a token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, Files]] = {}
        self.gated: set[str] = set()
        self.breaks_off = 0  # so many bodies end half way
        self.stalls = 0  # so many come to a stop there, and stay open
        self.given = Counter[str]()  # whole bodies, by file
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, name: str, files: Files) -> str:
        """A further commit of a model; returns its hash."""
        commits = self.models.setdefault(name, {})
        told = repr((name, len(commits), sorted(files))).encode()
        commit = hashlib.sha1(told).hexdigest()
        commits[commit] = files
        return commit


class _Handler(JsonHandler):
    server: FakeHub

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        self.server.asked += 1
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        commits = self.server.models.get(name)
        if commits is None:
            return self.tell(status=404, headers={"X-Error-Code": "RepoNotFound"})
        wanted = rest[1] if len(rest) > 1 else "main"
        commit = list(commits)[-1] if wanted == "main" else wanted
        if commit not in commits:
            return self.tell(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        files = commits[commit]
        if api and rest[:1] == ["tree"]:
            return self.tell(
                [
                    {"type": "file", "path": p, "size": len(d), "oid": _etag(d)}
                    for p, d in files.items()
                ]
            )
        if api:
            return self.tell(
                {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
            )
        if name in self.server.gated and "authorization" not in self.headers:
            return self.tell(status=403, headers={"X-Error-Code": "GatedRepo"})
        path = "/".join(rest[2:])
        if path not in files:
            return self.tell(status=404, headers={"X-Error-Code": "EntryNotFound"})
        return self._file(path, files[path], commit)

    def _file(self, path: str, data: bytes, commit: str) -> None:
        start = int(self.headers.get("range", "bytes=0-").split("=")[1].split("-")[0])
        body = data[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.breaks_off and len(body) > 100:
            self.server.breaks_off -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        if self.server.stalls and len(body) > 100:
            self.server.stalls -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(20)
            return
        self.wfile.write(body)
        self.server.given[path] += 1


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
