"""What this process reads and writes: bytes of videos and tables at our own doors, and the requests
that object stores of the S3 kind bill."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

import fsspec

_PROCESS = Path("/proc/self/io")  # Linux, proc(5)


@dataclass
class Traffic:
    """Bytes and requests; retries are requests too."""

    bytes_read: int = 0
    bytes_written: int = 0
    requests: int = 0

    def since(self, before: Traffic) -> dict[str, int]:
        """What came after `before`, by name."""
        earlier = asdict(before)
        return {name: value - earlier[name] for name, value in asdict(self).items()}


_OURS = Traffic()
_LOCK = Lock()


def ours() -> Traffic:
    """All of this process until now."""
    with _LOCK:
        return Traffic(**asdict(_OURS))


def count(*, read: int = 0, written: int = 0, requests: int = 0) -> None:
    with _LOCK:
        _OURS.bytes_read += read
        _OURS.bytes_written += written
        _OURS.requests += requests


def count_requests(fs: fsspec.AbstractFileSystem) -> None:
    """Counts every request that an S3 file system sends from now on, each once."""
    fs.s3.meta.events.register("before-send.s3", _sent, unique_id="emolake-requests")


def _sent(**_event: Any) -> None:
    count(requests=1)


def counted(file: IO[bytes]) -> IO[bytes]:
    """A file opened by fsspec that counts what it fetches, read-ahead and all."""
    cache = getattr(file, "cache", None)
    if cache is not None:
        cache.fetcher = _counting(cache.fetcher)
    return file


def _counting(fetch: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    def fetched(start: int, end: int) -> bytes:
        data = fetch(start, end)
        count(read=len(data))
        return data

    return fetched


def bytes_read_by_process() -> int:
    """What this process has read from files, as the kernel counts (sockets left out); 0 where it
    does not tell. The difference of two calls is what was read between."""
    with suppress(OSError, ValueError):
        for line in _PROCESS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "rchar":
                return int(value)
    return 0
