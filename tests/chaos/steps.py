"""A store in memory whose every request waits to be let through, and actors that run on it a request at a
time: whoever holds the schedule can stop, kill and mislead any of them between any two requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fsspec import AbstractFileSystem
from greenlet import getcurrent, greenlet

from emolake.pipeline.lake.layout import Lake


class Killed(BaseException):
    """The process is no more: nothing that it would still do is done."""


class Actor:
    """A process: a coroutine of plain code, that stands before each of its requests until it is let on.
    Threads would do, and wait for each other to wake."""

    def __init__(self, store: Store, work: Callable[[Actor], None]) -> None:
        self.lake = Lake("memory", ActorsView(store, self, skip_instance_cache=True), "lake")
        self.error: BaseException | None = None
        self.killed = self.lies = self.done = False
        self._runs = greenlet(lambda: self._run(work))
        self._go_on()

    def _run(self, work: Callable[[Actor], None]) -> None:
        try:
            self.gate()
            work(self)
        except (Killed, Exception) as error:
            self.error = error
        self.done = True

    def _go_on(self) -> None:
        """Until it stands before its next request, or has ended."""
        self._runs.parent = getcurrent()
        self._runs.switch()

    def gate(self) -> None:
        """Called by the actor before each request."""
        if self.killed:
            raise Killed
        assert self._runs.parent is not None
        self._runs.parent.switch()
        if self.killed:
            raise Killed

    def advance(self) -> None:
        """One request more, unless it has ended."""
        if not self.done:
            self._go_on()

    def kill(self) -> None:
        self.killed = True
        self.advance()
        assert self.done


class Store:
    """Objects by path; each request happens at once and whole, as S3's do, but a listing has pages."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}


class ActorsView(AbstractFileSystem):
    """The store as one actor sees it."""

    cachable = False

    def __init__(self, store: Store, actor: Actor, **options: Any) -> None:
        super().__init__(**options)
        self.store, self.actor = store, actor

    def _effect(self) -> Callable[[], None]:
        """Waits to be let through; what it gives is called after the effect and may lose the answer."""
        self.actor.gate()
        lies, self.actor.lies = self.actor.lies, False

        def answered() -> None:
            if lies:
                raise TimeoutError("the answer was lost")

        return answered

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        """In two pages, between which the world goes on."""
        self._effect()
        there = self._under(path)
        middle = there[len(there) // 2] if there else ""
        found = {p: self._told(p) for p in there if p <= middle}
        if len(there) > 1:
            self._effect()
            found |= {p: self._told(p) for p in self._under(path) if p > middle}
        return found if detail else list(found)

    def _under(self, path: str) -> list[str]:
        return sorted(p for p in self.store.objects if p.startswith(path + "/"))

    def _told(self, path: str) -> dict[str, Any]:
        return {"name": path, "size": len(self.store.objects[path]), "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        found = self.find(path, detail=True)
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._effect()
        if path not in self.store.objects:
            raise FileNotFoundError(path)
        return self._told(path)

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        self._effect()
        if path not in self.store.objects:
            raise FileNotFoundError(path)
        return self.store.objects[path]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        answered = self._effect()
        if mode == "create" and path in self.store.objects:
            raise FileExistsError(path)
        self.store.objects[path] = value
        answered()

    def rm_file(self, path: str) -> None:
        answered = self._effect()
        if self.store.objects.pop(path, None) is None:
            raise FileNotFoundError(path)
        answered()
