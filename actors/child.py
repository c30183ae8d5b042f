"""A supervised child process: it may crash, hang or eat memory, and only its request is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection


class ChildDied(Exception):
    """The child ended without an answer. code: its exit status, negative for a signal."""

    def __init__(self, code: int) -> None:
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        super().__init__(name)
        self.code = code


class ChildTimedOut(Exception):
    """The child gave no answer in time and was killed."""


class Child:
    """Runs `python -m MODULE` and exchanges byte messages with it; started at first use.

    offline: it leaves the network first, where the platform allows.

    The child inherits one end of a socket pair as the file descriptor named in its last argument,
    and nothing else but the standard streams.
    """

    def __init__(self, module: str, *, offline: bool = False) -> None:
        self.module = module
        self.offline = offline
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[bytes, bytes] | None = None

    def ask(self, message: bytes, timeout_s: float) -> bytes:
        """Sends a request and waits for its answer. ChildDied and ChildTimedOut end the child; the
        next request starts a new one."""
        try:
            self.send(message)
            return self.answer(timeout_s)
        except BaseException:  # an interrupt too, as of a task that Ray cancels
            self.stop()  # else the next to ask would have this one's answer
            raise

    def send(self, message: bytes) -> None:
        """The first half of `ask`."""
        try:
            self._started().send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            raise ChildDied(self.stop()) from None

    def answer(self, timeout_s: float) -> bytes:
        """The second half of `ask`."""
        connection = self._connection
        if connection is None:
            raise ChildDied(0)
        try:
            if not connection.poll(timeout_s):
                self.stop()
                raise ChildTimedOut(f"no answer within {timeout_s:.0f} s")
            return connection.recv_bytes()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise ChildDied(self.stop()) from None

    def stop(self) -> int:
        """Kills the child if it runs; its exit status, negative for the signal that ended it."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is None:
            return 0
        try:
            # A child that closed its end is dying by itself: its own status tells why.
            return process.wait(timeout=0.5)
        except BaseException as error:
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return process.wait()

    @property
    def pid(self) -> int | None:
        """None where it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def _started(self) -> Connection[bytes, bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._connection is None:
            ours, theirs = socket.socketpair()
            path = os.pathsep.join(p for p in sys.path if p)
            with theirs:
                modules = ["emolake.actors.apart"] if self.offline else []
                self._process = subprocess.Popen(
                    [sys.executable, "-m", *modules, self.module, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                )
            self._connection = Connection(ours.detach())
        return self._connection

    def __del__(self) -> None:
        if self._process is not None:
            self._process.kill()
