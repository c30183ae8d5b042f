"""`emolake publish`: the tables as Apache Iceberg."""

from __future__ import annotations

from dataclasses import asdict

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.errors import JobFailed
from emolake.pipeline.lake.iceberg import check_tables, open_catalog, publish
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import holding
from emolake.pipeline.lake.reading import refuse_unless_used
from emolake.pipeline.lake.recovery import recover
from emolake.pipeline.lake.runs import read_runs
from emolake.pipeline.storage.files import Storage, parse_options


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option(
        "--catalog",
        "NAME",
        "a catalogue of pyiceberg's configuration, or sqlite:///FILE",
        required=True,
    )
    parser.option("--namespace", "NAME", "namespace of the tables", default="emolake")
    storage_option(parser)
    parser.calls(run, "emolake publish out/ --catalog sqlite:///catalog.db")


def run(options: Options) -> int:
    storage = Storage(parse_options(options.storage_options))
    lake = Lake.at(options.output, storage)
    try:
        refuse_unless_used(lake)
        catalog = open_catalog(options.catalog, lake, storage.options)
        check_tables(lake, catalog, options.namespace)
        with holding(lake, "publish") as fence:
            last_run = next((str(run["run_id"]) for run in read_runs(lake)), "unknown")
            recover(lake, fence)
            done = publish(lake, catalog, options.namespace, last_run, fence)
    except OSError as error:
        raise JobFailed(lake.cannot_write(error)) from error
    lines = (
        f"{options.namespace}.{table.table}: snapshot {table.snapshot_id}: "
        f"{table.segments_added} segments added, {table.segments_removed} taken out"
        if table.snapshot_id is not None
        else f"{options.namespace}.{table.table}: nothing new"
        for table in done
    )
    return tell(options, {"output": lake.uri, "tables": [asdict(t) for t in done]}, *lines)
