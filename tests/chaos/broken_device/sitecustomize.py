"""For the processes of a Ray node whose GPUs are declared and not there: annotation computes on the CPU, and
where EMOLAKE_TEST_BROKEN says so answers as CUDA does on a broken device. Elsewhere it answers once, and then
waits until three processes have broken (they stand in the file EMOLAKE_TEST_BREAKS), so that the broken node
is needed whatever the machine's speed."""

import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_PATCHED = "emolake.actors.annotation_actor"
_BREAKS = 3
_LONGEST_WAIT_S = 120.0


def _broken(*_: Any) -> NoReturn:
    with Path(os.environ["EMOLAKE_TEST_BREAKS"]).open("a") as breaks:
        breaks.write(f"{os.getpid()}\n")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _breaks() -> int:
    path = Path(os.environ["EMOLAKE_TEST_BREAKS"])
    return len(set(path.read_text().splitlines())) if path.exists() else 0


def _waiting(annotate: Callable[..., Any]) -> Callable[..., Any]:
    calls = itertools.count()

    def waits(*given: Any) -> Any:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while next(calls) and _breaks() < _BREAKS and time.monotonic() < deadline:
            time.sleep(0.1)
        return annotate(*given)

    return waits


def _patch(module: ModuleType) -> None:
    begin = module.AnnotationActor.__init__

    def begin_on_cpu(self: Any, settings: Any) -> None:
        begin(self, replace(settings, device="cpu"))
        for annotator in self.annotators:
            broken = os.environ.get("EMOLAKE_TEST_BROKEN")
            annotator.annotate = _broken if broken else _waiting(annotator.annotate)

    module.AnnotationActor.__init__ = begin_on_cpu


class _Patcher(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _PATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Patcher())
