"""For the processes of a Ray node whose GPUs are declared and not there: annotation computes on the CPU, and
where EMOLAKE_TEST_BROKEN says so answers as CUDA does on a broken device; elsewhere it takes so long that
all nodes are needed."""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NoReturn

_PATCHED = "emolake.actors.annotation_actor"
_LONG_S = 0.5


def _broken(*_: Any) -> NoReturn:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _slow(annotate: Callable[..., Any]) -> Callable[..., Any]:
    def slowly(*given: Any) -> Any:
        time.sleep(_LONG_S)
        return annotate(*given)

    return slowly


def _patch(module: ModuleType) -> None:
    begin = module.AnnotationActor.__init__

    def begin_on_cpu(self: Any, settings: Any) -> None:
        begin(self, replace(settings, device="cpu"))
        for annotator in self.annotators:
            broken = os.environ.get("EMOLAKE_TEST_BROKEN")
            annotator.annotate = _broken if broken else _slow(annotator.annotate)

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
