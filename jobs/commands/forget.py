"""`emolake forget`: every row of a video leaves the output."""

from __future__ import annotations

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.corpus.listing import is_manifest, named_uris, unicode_name, uris_of_manifest
from emolake.pipeline.errors import JobFailed, UserError, in_a_line
from emolake.pipeline.lake.forgetting import TELLING, Forgotten, begin, blacken_runs, finish
from emolake.pipeline.lake.iceberg import (
    Published,
    check_tables,
    has_warehouse,
    open_catalog,
    publish,
)
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import holding
from emolake.pipeline.lake.reading import refuse_unless_used, steady_ledger
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
    published: list[Published] = []
    try:
        refuse_unless_used(lake)
        uris, known = _named(lake, options.uri, storage)
        catalog = options.catalog and open_catalog(options.catalog, lake, storage.options)
        if catalog:
            check_tables(lake, catalog, options.namespace, published=True)
        elif has_warehouse(lake):
            raise UserError(
                f"{lake.uri} has been published and holds tables of Iceberg too; name their --catalog"
            )
        with holding(lake, "forget") as fence:
            record = begin(lake, uris, fence)
            blacken_runs(lake, {*known, *filter(_is_telling, uris)}, fence)
            recover(lake, fence, forgets=False)
            rows = erase(lake, fence, uris)
            if catalog:
                published = publish(lake, catalog, options.namespace, "forget", fence, forgets=True)
            record = finish(lake, record, rows)
    except OSError as error:
        raise JobFailed(lake.cannot_write(error)) from error
    snapshots = {p.table: p.snapshot_id for p in published if p.segments_removed}
    told = {"output": lake.uri, "videos": len(known), "rows": rows, "record": record.id}
    lines = [
        f"{lake.uri}: {len(known)} videos forgotten: "
        + ", ".join(f"{count} rows of {table}" for table, count in rows.items())
    ]
    lines += [
        f"{options.namespace}.{table}: gone from snapshot {snapshot} on; "
        "older ones hold them until they expire"
        for table, snapshot in snapshots.items()
    ]
    return tell(options, told | {"snapshots": snapshots}, *lines)


def _is_telling(uri: str) -> bool:
    """Whether a name that only a manifest tells is one that a record may quote, and no `/`."""
    return len(uri.rpartition("/")[2]) >= TELLING


def _named(lake: Lake, names: list[str], storage: Storage) -> tuple[set[str], set[str]]:
    """The videos that are meant, and those of them that the output knows: what else a manifest names may
    come tomorrow. UserError where the output has never heard of what is named."""
    meant = {
        name: uris_of_manifest(name, storage)
        if is_manifest(name)
        else {unicode_name(name), *named_uris([name])}
        for name in names
    }
    asked = set().union(*meant.values())
    forgotten = Forgotten.of(lake)
    known = {uri for uri in asked if uri in forgotten}
    for part in steady_ledger(lake).parts():
        known.update(uri for uri in part["uri"].unique().to_pylist() if uri in asked)
    for name, uris in meant.items():
        if not uris & known:
            raise UserError(
                f"{lake.uri} knows no video by {in_a_line(name)!r}; name it as the column `uri` of its "
                "tables does, or a manifest of such names"
            )
    return known.union(*(uris for name, uris in meant.items() if is_manifest(name))), known
