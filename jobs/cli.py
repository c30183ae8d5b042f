"""The command line: what was typed -> a command of `jobs.commands`, and its exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, TextIO

from emolake.jobs.interrupts import EXIT_INTERRUPTED, heed, interrupted
from emolake.jobs.parser import Options, make_parser
from emolake.pipeline.errors import EmolakeError, UserError, in_a_line

EXIT_FAILED, EXIT_USER, EXIT_TOO_MANY_FAILED = 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code of the contract."""
    heed()
    quiet_trace = os.environ.get("EMOLAKE_TRACEBACK") is None
    try:
        words = sys.argv[1:] if arguments is None else arguments
        called = [word for word in words if not word.startswith("-")][:1]
        options = make_parser(called).parse_args(words)
        with _results_alone(getattr(options, "json", False)):
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        _complain(error)
        return EXIT_USER
    except KeyboardInterrupt:
        return interrupted()
    except SystemExit as left:
        # While Ray starts it handles SIGTERM by an exit of its own.
        if left.code == signal.SIGTERM:
            return interrupted()
        raise
    except BrokenPipeError:
        # The reader of our output left (`emolake status | head`); nothing more can be told to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not quiet_trace and not isinstance(error, EmolakeError):
            raise
        _complain(error)
        return EXIT_FAILED


def run() -> NoReturn:
    """The console script: `main`, and the end of the process."""
    code = main()
    if code == EXIT_INTERRUPTED:
        # Ray's threads may be in the middle of anything; taking the interpreter down under them
        # has crashed it, and a crash is not the exit code that was promised.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _complain(error: Exception) -> None:
    name = "" if isinstance(error, EmolakeError) else f"{type(error).__name__}: "
    print(f"emolake: {name}{in_a_line(error, 1000)}", file=sys.stderr)


_results: TextIO | None = None


@contextmanager
def _results_alone(wanted: bool) -> Iterator[None]:
    """Standard output for `print_json` alone: whatever a library prints (Ray does, when a worker dies)
    goes to standard error."""
    global _results
    if not wanted:
        yield
        return
    _results = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = None


def print_json(value: Any) -> None:
    """Machine-readable results: standard output carries nothing else."""
    stream = _results or sys.stdout
    json.dump(value, stream, indent=2, default=str)
    stream.write("\n")


def tell(options: Options, result: Any, *lines: str) -> int:
    """What a command came to: as JSON where that was asked for, else in lines. Exit code 0."""
    if options.json:
        print_json(result)
    else:
        for line in lines:
            print(line)
    return 0
