"""Generates docs/configuration.md from the option tree and docs/cli.md from the parser: `make docs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from emolake.jobs.parser import make_parser
from emolake.pipeline.config import Config, all_keys

_HEAD = """# Configuration

Generated from `pipeline/config.py` by `make docs`. Sources, each winning over the ones before:
defaults, `--config FILE` (YAML), the environment (`EMOLAKE_FACES__MIN_FACE=32`), named options
(`--model`, `--corpus`), `--set faces.min_face=32`. An unknown key is an error that names the nearest
valid one.

| key | default | meaning |
| --- | --- | --- |
"""

_CLI_HEAD = """# Command line

Generated from `jobs/commands/` by `make docs`. Exit codes: 0 finished, 1 the job failed (the same command
resumes), 2 your mistake (nothing was started), 3 more videos failed than
`limits.max_failed_fraction` allows, 130 interrupted. `--json` prints the result on standard output;
logs go to standard error.
"""


def configuration_reference() -> str:
    """The whole file."""
    return _HEAD + "".join(
        f"| `{key}` | `{field.default}` | {field.description} |\n"
        for key, field in all_keys(Config).items()
    )


def cli_reference() -> str:
    """The whole file."""
    return _CLI_HEAD + "".join(_commands(make_parser(), "emolake"))


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """A section for each command, from the parser that reads them."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in nested:
        for word, child in action.choices.items():
            yield from _commands(child, f"{name} {word}")
    if nested:
        return
    yield f"\n## {name}\n{parser.description}\n\n"
    if parser.epilog:
        yield f"```sh\n{parser.epilog.removeprefix('example: ')}\n```\n\n"
    yield "| argument | default | meaning |\n| --- | --- | --- |\n"
    for option in parser._actions:
        if isinstance(option, argparse._HelpAction):
            continue
        words = ", ".join(option.option_strings) or str(option.metavar or option.dest)
        if option.option_strings and option.nargs != 0:
            words += f" {option.metavar or option.dest.upper()}"
        default = "" if option.default in (None, False, []) else f"`{option.default}`"
        told = " ".join(str(option.help or "").split()).replace("|", "\\|")
        yield f"| `{words}` | {default} | {told} |\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "configuration.md").write_text(configuration_reference())
    (folder / "cli.md").write_text(cli_reference())
