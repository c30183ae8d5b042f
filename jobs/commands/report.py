"""`emolake report`: the page of an output."""

from __future__ import annotations

from pathlib import Path

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, prices_option, storage_option
from emolake.pipeline.corpus.estimate import Prices
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.presentation.report.content import read_report
from emolake.pipeline.presentation.report.page import render
from emolake.pipeline.storage.files import Storage, parse_options


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option("--html", "FILE", "page to write", type=Path, default=Path("report.html"))
    prices_option(parser)
    storage_option(parser)
    parser.calls(run, "emolake report out/ --html report.html")


def run(options: Options) -> int:
    lake = Lake.at(options.output, Storage(parse_options(options.storage_options)))
    try:
        report = read_report(lake)
    except OSError as error:
        raise UserError(f"{lake.uri} cannot be read: {in_a_line(error)}") from None
    if not report.runs and not report.total:
        raise UserError(f"{lake.uri} holds no run; name the --output of an annotate")
    page = render(report, options.prices and Prices.read(options.prices))
    try:
        options.html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {options.html} cannot be written: {error.strerror}") from None
    told = {"html": str(options.html), "videos": report.total, "bytes": len(page)}
    line = f"{options.html}: {report.total} videos, {len(page) / 1e3:.0f} kB"
    return tell(options, told, line)
