"""Signals that end a command: a KeyboardInterrupt that is not lost, and an end that comes in any case."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

EXIT_INTERRUPTED = 130
_ENDS_WITHIN_S = 30.0
_ONCE_MORE_AFTER_S = 0.2

_struck: int | None = None
"""The end of a pipe that a signal is told to: whoever takes no lock there waits for none."""


def heed() -> None:
    """SIGTERM, and SIGHUP and SIGINT unless they are ignored, interrupt what runs."""
    global _struck
    if _struck is None:
        waits, _struck = os.pipe()
        threading.Thread(target=_cut, args=(waits,), name="interrupted", daemon=True).start()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # `nohup` is obeyed
        signal.signal(signal.SIGHUP, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def leave_to_asyncio() -> None:
    """Ctrl-C, which `asyncio.run` takes in its own orderly way where it finds Python's handler."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted() -> int:
    """The command came to its end; the exit code."""
    # Not by `print`, whose buffer the interrupted code may be writing to; and nobody may be there to read.
    with suppress(OSError):
        os.write(2, b"interrupted; what was committed stays, the same command resumes\n")
    return EXIT_INTERRUPTED


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _struck is not None:
        os.write(_struck, b"!")
    sys.unraisablehook = _lost
    raise KeyboardInterrupt


def _lost(what: Any) -> None:
    """An exception of a callback whose caller cannot take one, after a fork or within the collector: Python
    prints it and goes on, and an interrupt among them would never have been."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, _ONCE_MORE_AFTER_S)
    else:
        sys.__unraisablehook__(what)


def _cut(waits: int) -> NoReturn:
    """Where the end hangs, in a library or because what was interrupted held a lock: the end as a kill makes
    it, from which the same command resumes."""
    os.read(waits, 1)
    time.sleep(_ENDS_WITHIN_S)
    os._exit(interrupted())
