"""A signal ends a command, wherever in it Python happens to be."""

import signal
import subprocess
import sys
import time

import pytest

_COMMAND = """
import ctypes, os, signal, threading
from types import SimpleNamespace
from emolake.jobs import cli, interrupts

def lost(options):
    # As in logging, whose callback after a fork lets go of its lock: what is raised there is printed.
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.{name}))
    if os.fork() == 0:
        os._exit(0)
    print("goes on", flush=True)
    threading.Event().wait()

def hangs(options):
    interrupts._ENDS_WITHIN_S = 1.5
    held = threading.Lock()
    held.acquire()
    try:
        print("goes on", flush=True)
        threading.Event().wait()
    finally:
        while True:
            try:
                held.acquire()
            except KeyboardInterrupt:
                pass

def hangs_in_a_library(options):
    interrupts._ENDS_WITHIN_S = 1.5
    try:
        print("goes on", flush=True)
        threading.Event().wait()
    finally:
        while ctypes.CDLL(None).sleep(600):
            pass

cli.make_parser = lambda _: SimpleNamespace(parse_args=lambda _: SimpleNamespace(run={what}))
cli.run()
"""


def command(what: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND.format(what=what, name=name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interrupt_that_no_caller_can_take_comes_again(name: str) -> None:
    process = command("lost", name)
    told, error = process.communicate(timeout=60)
    assert told == "goes on\n", "the first one is lost"
    assert process.returncode == 130
    assert error == "interrupted; what was committed stays, the same command resumes\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["hangs", "hangs_in_a_library"])
def test_a_command_that_cannot_end_is_ended(what: str, how: signal.Signals) -> None:
    process = command(what, how.name)
    assert process.stdout is not None
    assert process.stdout.readline() == "goes on\n"
    process.send_signal(how)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began > 1, "it had its time"
    assert process.returncode == 130
    assert "resumes" in error


@pytest.mark.parametrize("what", ["lost", "hangs"])
def test_it_ends_where_nobody_listens_any_more(what: str) -> None:
    process = command(what, "SIGTERM")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout.readline() == "goes on\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
