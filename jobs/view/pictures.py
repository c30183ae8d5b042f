"""What a viewer shows of a video, made on demand in child processes and kept for a while; never stored in the
output."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from emolake.actors.child import Child, ChildDied, ChildTimedOut
from emolake.pipeline.errors import Reason, VideoError

_CHILDREN = 2
_MEMORY_MB = 4096
_START_TIMEOUT_S, _LOOK_S, _STILL_S, _REMAKE_S = 120.0, 30.0, 30.0, 120.0
_STILLS, _REMADE = 512, 24
REMADE_S = 20.0
"""Length of a stretch that is remade at once."""
_STILL_WIDTH, _REMADE_WIDTH = 320, 960

T = TypeVar("T")


class Pictures:
    """All methods may be called from any thread, and raise VideoError where a video shows nothing.

    folder: where remade stretches stand; offline: whether all videos are files of this machine.
    """

    def __init__(self, folder: Path, storage_options: Mapping[str, Any], *, offline: bool) -> None:
        self._folder = folder
        self._settings = {"memory_mb": _MEMORY_MB, "storage_options": dict(storage_options)}
        self._children: queue.Queue[_Decoder] = queue.Queue()
        self._offline = offline
        for _ in range(_CHILDREN):
            self._children.put(_Decoder(self._settings, offline=offline))
        self._looks: _Kept[str | None] = _Kept(_STILLS)
        self._stills: _Kept[bytes] = _Kept(_STILLS)
        self._remade: _Kept[tuple[Path, float]] = _Kept(
            _REMADE, lambda made: made[0].unlink(missing_ok=True)
        )

    def forget(self, *, offline: bool) -> None:
        """What was made may be of files that have changed since."""
        self._offline = offline
        for kept in (self._looks, self._stills, self._remade):
            kept.clear()

    def why_remade(self, uri: str) -> str | None:
        """None where browsers play a video as it is."""

        def look() -> str | None:
            told: str | None = self._told({"do": "look", "uri": uri}, _LOOK_S)["remade"]
            return told

        return self._looks.get(uri, look)

    def still(self, uri: str, time_s: float, box: list[float] | None, blur: Any) -> bytes:
        """A JPEG of the moment, around a face where its box is given; blur: paths of faces to be blurred
        (presentation.blur), "all", or None."""
        request = {
            "do": "still", "uri": uri, "time_s": time_s, "box": box, "blur": blur,
            "width": _STILL_WIDTH,
        }  # fmt: skip
        key = json.dumps(request)
        return self._stills.get(key, lambda: self._asked(request, _STILL_S))

    def remade(self, uri: str, number: int, blur: Any) -> tuple[Path, float]:
        """A stretch as browsers play it, and the time of its first frame."""
        key = json.dumps([uri, number, blur])

        def make() -> tuple[Path, float]:
            target = self._folder / f"{secrets.token_hex(8)}.mp4"
            request = {
                "do": "remake", "uri": uri, "start_s": number * REMADE_S,
                "end_s": (number + 1) * REMADE_S, "target": str(target), "width": _REMADE_WIDTH,
                "blur": blur,
            }  # fmt: skip
            return target, float(self._told(request, _REMAKE_S)["from"])

        return self._remade.get(key, make)

    def stop(self) -> None:
        while not self._children.empty():
            self._children.get_nowait().child.stop()

    def _told(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._asked(request, timeout_s))
        return told

    def _asked(self, request: dict[str, Any], timeout_s: float) -> bytes:
        decoder = self._children.get()
        try:
            if decoder.child.offline and not self._offline:
                decoder.child.stop()
                decoder = _Decoder(self._settings, offline=False)
            answer = decoder.ask(request | {"cpu_seconds": 2 * timeout_s}, timeout_s)
        finally:
            self._children.put(decoder)
        if answer.startswith(b"{") and (failure := json.loads(answer).get("failure")):
            raise VideoError(failure["reason"], failure["detail"])
        return answer


class _Decoder:
    """The child with its settings."""

    def __init__(self, settings: dict[str, Any], *, offline: bool) -> None:
        self._settings = json.dumps(settings).encode()
        self.child = Child("emolake.actors.picture_child", offline=offline)

    def ask(self, request: dict[str, Any], timeout_s: float) -> bytes:
        reason: Reason
        try:
            if self.child.pid is None:
                self.child.ask(self._settings, _START_TIMEOUT_S)
            return self.child.ask(json.dumps(request).encode(), timeout_s)
        except ChildDied as death:
            reason, why = "decoder_crashed", f"the decoder died: {death}"
        except ChildTimedOut as late:
            reason, why = "timeout", str(late)
        raise VideoError(reason, why)


class _Kept(Generic[T]):
    """The last ones that were made, each once, however many ask for it at a time."""

    def __init__(self, most: int, drop: Callable[[T], None] = lambda _: None) -> None:
        self._most = most
        self._drop = drop
        self._made: OrderedDict[str, T] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        with self._lock:
            while self._made:
                self._drop(self._made.popitem()[1])

    def get(self, key: str, make: Callable[[], T]) -> T:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._made:
                    self._made.move_to_end(key)
                    return self._made[key]
            try:
                made = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._made[key] = made
                if len(self._made) > self._most:
                    self._drop(self._made.popitem(last=False)[1])
            return made
