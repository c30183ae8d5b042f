"""What may be typed: the commands, how each declares its options, and those that several have.

A command is a line of `COMMANDS` and a file of its name in `jobs/commands`, which declares its options
(`declare`) beside the code that reads them. Only the file of the command that is called is imported:
`--help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from emolake.pipeline.errors import UserError

COMMANDS = {
    "annotate": "find the faces of videos and write their emotions as Parquet",
    "plan": "count what annotate would do and what it would skip, and why",
    "submit": "run the same job on a Ray cluster, follow its log and return its exit code",
    "jobs": "list the jobs of a cluster",
    "status": "show the ledger: videos by state, failures by reason, runs",
    "report": "write a self-contained page: timelines, failures, runs",
    "export": "one annotated video to watch, or for annotation tools",
    "compact": "merge small files into large ones; safe to kill, refused while a run has the output",
    "forget": "erase every row of videos; they are not annotated again unless asked for",
    "publish": "bring the tables into an Apache Iceberg catalogue: one snapshot of what is new",
    "models": "list, show, get, convert, compare and verify models",
    "evaluate": "score a model on labelled pictures or videos, or an output against labels",
    "view": "watch an output in the browser, and correct it",
    "labels": "what people said in the view, as a labelled table; how far they agree",
    "measure": "shares of face-time by emotion, with intervals that hold whatever the model is",
    "instruct": "make instruction data from a labelled set, by templates or by a model that looks",
    "tune": "train a model on labelled face pictures; started again it resumes",
    "bench": "measure against a peer in the same run (docs/benchmarks.md)",
}

Options = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def calls(self, run: Callable[[Options], int], example: str) -> None:
        """Ends what a command declares. run: the options -> an exit code of the contract."""
        self.flag("--json", "machine-readable result")
        self.epilog = f"example: {example}"
        self.set_defaults(run=run)

    def option(self, name: str, metavar: str | None, told: str, **more: Any) -> None:
        """more: as `add_argument` takes it."""
        self.add_argument(name, metavar=metavar, help=told, **more)

    def pairs(self, name: str, told: str, dest: str) -> None:
        self.option(name, "KEY=VALUE", told, action="append", default=[], dest=dest)

    def flag(self, name: str, told: str) -> None:
        self.add_argument(name, action="store_true", help=told)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


def add_command(commands: Commands, name: str, summary: str) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=_Help,
    )


def make_parser(called: Collection[str] = COMMANDS.keys()) -> Parser:
    """called: the commands whose options are declared; of the others the summary is known."""
    parser = Parser(prog="emolake", description="Annotate video archives with facial emotions.")
    parser.add_argument("--version", action="version", version=f"emolake {version('emolake')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = add_command(commands, name, summary)
        if name in called:
            importlib.import_module(f"emolake.jobs.commands.{name}").declare(command)
    return parser


def input_options(parser: Parser) -> None:
    """What to annotate, where to and how: all that `setting.read_setting` reads."""
    parser.option("input", "INPUT", "file, folder, glob, fsspec URI or manifest", nargs="+")
    parser.option("--output", "URI", "where the tables stand", required=True)
    parser.option("--config", "FILE", "YAML of options", type=Path)
    parser.pairs(
        "--set",
        "one option, for example faces.min_face=32; repeatable, wins over the file",
        "settings",
    )
    parser.option(
        "--model",
        "NAME_OR_PATH",
        "embedded model, folder, org/name of a hub, or a classifier's file (emo-llama-tiny)",
    )
    parser.option("--corpus", "NAME", "partition the rows go to (default)")
    parser.flag("--reprocess", "do all again; new rows replace the old ones")
    parser.flag("--retry-failed", "try also what failed for good before")
    parser.option(
        "--since",
        "TIME",
        "only videos written since then: 2026-01-31, 2026-01-31T06:00+01:00, 7d or 36h",
    )
    storage_option(parser)


def output_argument(parser: Parser) -> None:
    parser.option("output", "OUTPUT", "where the tables stand")


def part_option(parser: Parser) -> None:
    parser.option(
        "--part", "LOW:HIGH",
        "windows of this part only, in percent; which are of it is chance and the same in both commands: "
        "0:70 to learn from, 70:100 to measure by",
    )  # fmt: skip


def run_id_option(parser: Parser) -> None:
    parser.option("--run-id", "ID", "name of this run (default: made from time)")


def prices_option(parser: Parser) -> None:
    parser.option(
        "--prices",
        "FILE",
        "YAML: currency, cpu_hour, gpu_hour, million_requests, gb_read, gb_written",
        type=Path,
    )


def address_option(parser: Parser) -> None:
    parser.option("--address", "URL", "the cluster's dashboard, http://HOST:8265", required=True)


def storage_option(parser: Parser) -> None:
    parser.pairs(
        "--storage-option",
        "passed to fsspec, for example endpoint_url=http://host:9000; repeatable",
        "storage_options",
    )


def table_options(parser: Parser, **data: Any) -> None:
    """What `comparison.of_a_table` reads besides `model` and `corruptions`. data: more of its option."""
    parser.option(
        "--data",
        "FILE",
        "Parquet, CSV or JSONL with label, and image, uri or frames; a file or fsspec URI",
        **data,
    )
    storage_option(parser)
    parser.option("--label-set", "NAME", "labels asked for (default: model's)")
    parser.pairs(
        "--set",
        "for --data: one option, for example annotator.precision=bfloat16; repeatable",
        "settings",
    )
