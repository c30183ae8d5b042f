"""Signals that end a command: a KeyboardInterrupt that is not lost, and an end that comes in any case."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

EXIT_INTERRUPTED = 130
_ENDS_WITHIN_S = 30.0
_ONCE_MORE_AFTER_S = 0.2

_ends_by: float | None = None


def heed() -> None:
    """SIGTERM, and SIGHUP and SIGINT unless they are ignored, interrupt what runs."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # `nohup` is obeyed
        signal.signal(signal.SIGHUP, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def interrupted() -> int:
    """The command came to its end; the exit code."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    return _told()


def _told() -> int:
    # Not by `print`, whose buffer the interrupted code may be writing at this moment.
    told = b"interrupted; what was committed stays, the same command resumes\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, told)
    return EXIT_INTERRUPTED


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    global _ends_by
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _ends_by = _ends_by or time.monotonic() + _ENDS_WITHIN_S
    # Not before: whoever calls us may have timers and hooks of its own.
    signal.signal(signal.SIGALRM, _again)
    signal.setitimer(signal.ITIMER_REAL, _ENDS_WITHIN_S)
    sys.unraisablehook = _lost
    raise KeyboardInterrupt


def _lost(what: Any) -> None:
    """An exception of a callback whose caller cannot take one, after a fork or within the collector: Python
    prints it and goes on, and an interrupt among them would never have been."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, _ONCE_MORE_AFTER_S)
    else:
        sys.__unraisablehook__(what)


def _again(_signal: int, _frame: FrameType | None) -> None:
    """A lost interrupt once more; or, where the end hangs since something was interrupted that held a lock,
    the end as a kill makes it, from which the same command resumes."""
    left = (_ends_by or 0.0) - time.monotonic()
    if left <= 0:
        os._exit(_told())
    signal.setitimer(signal.ITIMER_REAL, left)
    raise KeyboardInterrupt
