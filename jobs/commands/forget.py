"""`emolake forget`: every row of a video leaves the output."""

from __future__ import annotations

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.corpus.listing import named_uris
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.lake.forgetting import begin, blacken_runs, finish
from emolake.pipeline.lake.iceberg import Published, open_catalog, publish
from emolake.pipeline.lake.layout import LEDGER, Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.lake.recovery import erase, recover
from emolake.pipeline.storage.files import Storage, parse_options


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.add_argument(
        "uri",
        nargs="+",
        metavar="URI",
        help="a video as `annotations` names it, or a manifest of such",
    )
    parser.option("--catalog", "NAME", "an Iceberg catalogue to take them out of too")
    parser.option("--namespace", "NAME", "namespace of its tables", default="emolake")
    storage_option(parser)
    parser.calls(run, "emolake forget s3://lake/emotions s3://archive/2024/interview.mp4")


def run(options: Options) -> int:
    storage = Storage(parse_options(options.storage_options))
    lake = Lake.at(options.output, storage)
    uris = named_uris(options.uri, storage)
    published: list[Published] = []
    try:
        if not lake.files(LEDGER):
            raise UserError(f"{lake.uri} holds no run; name the --output of an annotate")
        catalog = options.catalog and open_catalog(options.catalog, lake, storage.options)
        lease = Lease.acquire(lake, "forget")
        try:
            record = begin(lake, uris)
            blacken_runs(lake, uris)
            recover(lake, lease.fence, forgets=False)
            rows = erase(lake, lease.fence, uris)
            if catalog:
                published = publish(lake, catalog, options.namespace, "forget", lease.fence)
            record = finish(lake, record, rows)
        finally:
            lease.release()
    except OSError as error:
        raise JobFailed(lake.cannot_write(error)) from error
    snapshots = {p.table: p.snapshot_id for p in published if p.snapshot_id is not None}
    told = {"output": lake.uri, "videos": len(uris), "rows": rows, "record": record.id}
    lines = [
        f"{lake.uri}: {len(uris)} videos forgotten: "
        + ", ".join(f"{count} rows of {table}" for table, count in rows.items())
    ]
    lines += [
        f"{options.namespace}.{table}: gone from snapshot {snapshot} on; "
        "older ones hold them until they expire"
        for table, snapshot in snapshots.items()
    ]
    return tell(options, told | {"snapshots": snapshots}, *lines)
