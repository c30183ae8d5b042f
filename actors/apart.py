"""Runs a module in a process that has left the network: `python -m emolake.actors.apart MODULE ARGUMENTS`.

Whoever reads local files only has nobody to talk to. Linux lets an ordinary user's process into a namespace
of its own only while it has one thread, so this comes before the libraries that start more.
"""

from __future__ import annotations

import ctypes
import runpy
import sys

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # Linux, unshare(2)


def leave_network() -> bool:
    """Into a network namespace without interfaces; False where the platform does not allow it."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    return not (libc.unshare(_CLONE_NEWNET) and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET))


if __name__ == "__main__":
    if not leave_network():
        print(
            "emolake: this platform lets no process leave the network; videos are decoded with it",
            file=sys.stderr,
        )
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
