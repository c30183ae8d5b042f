"""`emolake report`: the page of an output."""

from __future__ import annotations

import argparse

from emolake.jobs.cli import print_json
from emolake.pipeline.corpus.estimate import Prices
from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.presentation.report.content import read_report
from emolake.pipeline.presentation.report.page import render
from emolake.pipeline.storage.files import Storage, parse_options


def report_command(options: argparse.Namespace) -> int:
    lake = Lake.at(options.output, Storage(parse_options(options.storage_options)))
    try:
        report = read_report(lake)
    except OSError as error:
        raise UserError(f"{lake.uri} cannot be read: {' '.join(str(error).split())}") from None
    if not report.runs and not report.videos:
        raise UserError(f"{lake.uri} holds no run; name the --output of an annotate")
    page = render(report, options.prices and Prices.read(options.prices))
    try:
        options.html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {options.html} cannot be written: {error.strerror}") from None
    if options.json:
        print_json({"html": str(options.html), "videos": len(report.videos), "bytes": len(page)})
    else:
        print(f"{options.html}: {len(report.videos)} videos, {len(page) / 1e3:.0f} kB")
    return 0
