"""Iceberg tables hold what the ledger says: one snapshot a publishing, nothing lost or doubled."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.lake import schema
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.iceberg import check_tables, open_catalog, publish
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import LeaseLost
from emolake.pipeline.lake.recovery import recover
from tests.pipeline.lake.test_lake import RUN, NoFence, glob_keys, lake_at, no_fence, segment

SECOND = RunStamp("run-2", "2026-02-01", "c0ffee")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = lake_at(tmp_path / "out")
    commit_segments(lake, [segment("a"), segment("b"), segment("n", windows=0)], RUN, no_fence)
    return lake


@pytest.fixture
def catalog(lake: Lake, tmp_path: Path) -> Catalog:
    return open_catalog(f"sqlite:///{tmp_path}/catalog.db", lake, {})


def published(lake: Lake, catalog: Catalog, run: str) -> dict[str, int | None]:
    return {p.table: p.snapshot_id for p in publish(lake, catalog, "emolake", run, no_fence)}


def keys(catalog: Catalog, table: str = "annotations") -> list[tuple]:
    rows = catalog.load_table(("emolake", table)).scan().to_arrow().to_pylist()
    return sorted((r["video_id"], r["segment"], r.get("window")) for r in rows)


def snapshots(catalog: Catalog, table: str = "annotations") -> list[str]:
    found = catalog.load_table(("emolake", table)).snapshots()
    return [s.summary.additional_properties["emolake.run-id"] for s in found]


def test_the_tables_hold_what_a_glob_shows(lake: Lake, catalog: Catalog) -> None:
    published(lake, catalog, "run-1")
    for table in ("annotations", "tracks", "videos"):
        assert keys(catalog, table) == glob_keys(lake, table)
        assert len(snapshots(catalog, table)) == 1


def test_publishing_again_changes_nothing(lake: Lake, catalog: Catalog) -> None:
    published(lake, catalog, "run-1")
    assert set(published(lake, catalog, "run-1").values()) == {None}
    assert snapshots(catalog) == ["run-1"]


def test_what_is_said_without_a_face_is_published_once(lake: Lake, catalog: Catalog) -> None:
    said = segment("said", tracks=[])
    beside_a_face = segment("both")
    for window in beside_a_face["annotations"]:
        window["track_id"] = -1
    commit_segments(lake, [said, beside_a_face], RUN, no_fence)
    published(lake, catalog, "run-1")
    assert keys(catalog) == glob_keys(lake)
    assert set(published(lake, catalog, "run-1").values()) == {None}


def test_each_run_is_one_snapshot_though_it_adds_and_replaces(lake: Lake, catalog: Catalog) -> None:
    published(lake, catalog, "run-1")
    again, new = segment("a", windows=3), segment("c")
    commit_segments(lake, [again, new], SECOND, no_fence)
    recover(lake, no_fence)
    published(lake, catalog, "run-2")
    assert snapshots(catalog) == ["run-1", "run-2"]
    assert keys(catalog) == glob_keys(lake) == sorted(
        [("a", 0, w) for w in range(3)] + [(v, 0, w) for v in "bc" for w in range(2)]
    )  # fmt: skip
    table = catalog.load_table(("emolake", "annotations"))
    first = table.scan(snapshot_id=table.snapshots()[0].snapshot_id).to_arrow()
    assert first.num_rows == 4, "the tables as they stood after the first run"


def test_a_segment_that_failed_first_is_replaced_though_the_run_id_is_the_same(
    lake: Lake, catalog: Catalog
) -> None:
    failed = segment("f", windows=0, failed=True, reason="timeout")
    commit_segments(lake, [failed], RUN, no_fence)
    published(lake, catalog, "run-1")
    commit_segments(lake, [segment("f", attempt=2)], RUN, no_fence)
    recover(lake, no_fence)
    published(lake, catalog, "run-1")
    rows = catalog.load_table(("emolake", "videos")).scan().to_arrow().to_pylist()
    assert [r["state"] for r in rows if r["video_id"] == "f"] == ["annotated"]
    assert keys(catalog) == glob_keys(lake)


def test_compaction_of_the_lake_is_no_news(lake: Lake, catalog: Catalog) -> None:
    commit_segments(lake, [segment("c")], RUN, no_fence)
    published(lake, catalog, "run-1")
    compact(lake, no_fence, 1 << 20)
    assert set(published(lake, catalog, "later").values()) == {None}
    assert keys(catalog) == glob_keys(lake)


def test_killed_between_tables_the_next_publishing_ends_it(lake: Lake, catalog: Catalog) -> None:
    calls = 0

    def dies_at_the_second() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise LeaseLost("killed here")

    with pytest.raises(LeaseLost):
        publish(lake, catalog, "emolake", "run-1", dies_at_the_second)
    assert keys(catalog, "tracks") == []
    commit_segments(lake, [segment("a", windows=3)], RUN, NoFence(number=2))  # once more, same id
    recover(lake, NoFence(number=2), own=True)
    published(lake, catalog, "run-1")
    for table in ("annotations", "tracks", "videos"):
        assert keys(catalog, table) == glob_keys(lake, table)
    assert [len(snapshots(catalog, t)) for t in ("annotations", "tracks", "videos")] == [2, 1, 1]
    assert set(published(lake, catalog, "run-1").values()) == {None}


def test_a_publisher_that_was_overtaken_adds_nothing(lake: Lake, catalog: Catalog) -> None:
    published(lake, catalog, "run-1")
    commit_segments(lake, [segment("c")], SECOND, no_fence)
    overtaken = False

    def overtake() -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            published(lake, catalog, "faster")

    with pytest.raises(JobFailed, match="run the same command again"):
        publish(lake, catalog, "emolake", "slower", overtake)
    assert keys(catalog) == glob_keys(lake)
    assert snapshots(catalog) == ["run-1", "faster"]


def test_a_publisher_that_a_forgetter_overtook_leaves_tables_that_can_be_read(
    lake: Lake, catalog: Catalog, tmp_path: Path
) -> None:
    published(lake, catalog, "run-1")
    commit_segments(lake, [segment("c")], SECOND, no_fence)
    asleep, wakes = threading.Event(), threading.Event()

    def sleeps() -> None:
        asleep.set()
        wakes.wait(60)

    with ThreadPoolExecutor(1) as pool:
        theirs = open_catalog(f"sqlite:///{tmp_path}/catalog.db", lake, {})
        slow = pool.submit(publish, lake, theirs, "emolake", "slow", sleeps)
        asleep.wait(60)

        def slow_goes_first() -> None:
            wakes.set()
            slow.result()

        with pytest.raises(JobFailed, match="run the same command again"):
            publish(lake, catalog, "emolake", "forget", slow_goes_first, forgets=True)
    publish(lake, catalog, "emolake", "forget", no_fence, forgets=True)
    assert keys(catalog) == glob_keys(lake)


def test_a_forgetter_that_slept_removes_no_file_of_who_publishes_meanwhile(
    lake: Lake, catalog: Catalog
) -> None:
    published(lake, catalog, "run-1")
    commit_segments(lake, [segment("c")], SECOND, no_fence)

    def loses_the_lease() -> None:
        published(lake, catalog, "run-2")
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        publish(lake, catalog, "emolake", "forget", loses_the_lease, forgets=True)
    for table in ("annotations", "tracks", "videos"):
        assert keys(catalog, table) == glob_keys(lake, table)


def test_what_a_run_does_once_more_under_its_id_is_replaced(lake: Lake, catalog: Catalog) -> None:
    published(lake, catalog, "run-1")
    commit_segments(lake, [segment("a", windows=3)], RUN, NoFence(number=2))
    recover(lake, NoFence(number=2), own=True)
    published(lake, catalog, "run-1")
    for table in ("annotations", "tracks", "videos"):
        assert keys(catalog, table) == glob_keys(lake, table)
    assert set(published(lake, catalog, "run-1").values()) == {None}


def test_tables_of_before_outputs_were_told_keep_their_owner(lake: Lake, tmp_path: Path) -> None:
    other = lake_at(tmp_path / "other")
    commit_segments(other, [segment("x")], RUN, no_fence)
    name = f"sqlite:///{tmp_path}/catalog.db"
    theirs = open_catalog(name, lake, {})
    published(lake, theirs, "run-1")
    for table in ("annotations", "tracks", "videos"):
        with theirs.load_table(("emolake", table)).transaction() as change:
            change.remove_properties("emolake.output")
    with pytest.raises(UserError, match="choose another --namespace"):
        publish(other, open_catalog(name, other, {}), "emolake", "run-1", no_fence)
    assert set(published(lake, theirs, "run-1").values()) == {None}
    check_tables(other, open_catalog(name, other, {}), "elsewhere")
    spelt_otherwise = lake_at(tmp_path / "other" / ".." / "out")
    check_tables(spelt_otherwise, theirs, "emolake", published=True)


def test_a_foreign_table_without_rows_is_not_taken(lake: Lake, catalog: Catalog) -> None:
    catalog.create_namespace("emolake")
    catalog.create_table(("emolake", "videos"), pa.schema([pa.field("title", pa.string())]))
    with pytest.raises(UserError, match="is of another writer"):
        check_tables(lake, catalog, "emolake")


def test_a_column_that_came_later_is_added(
    lake: Lake, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(lake, catalog, "run-1")
    wider = schema.ANNOTATIONS.append(pa.field("mood", pa.string()))
    monkeypatch.setitem(schema.TABLES, "annotations", wider)
    commit_segments(lake, [segment("c")], SECOND, no_fence)
    published(lake, catalog, "run-2")
    rows = catalog.load_table(("emolake", "annotations")).scan().to_arrow()
    assert rows["mood"].null_count == rows.num_rows == 6


def test_polars_and_duckdb_read_it(lake: Lake, catalog: Catalog) -> None:
    published(lake, catalog, "run-1")
    table = catalog.load_table(("emolake", "annotations"))
    counted = pl.scan_iceberg(table).group_by("emotion").len().collect()
    assert counted.rows() == [("fear", 4)]
    answer = table.scan().to_duckdb("annotations").sql(
        "SELECT emotion, max(confidence), scores['anger'] FROM annotations GROUP BY ALL"
    )  # fmt: skip
    assert answer.fetchall() == [("fear", 0.75, 0.25)]


@pytest.mark.parametrize("name", ["sqlite:////no/such/folder/catalog.db", "nowhere"])
def test_a_catalogue_that_is_not_there_is_told_in_one_line(lake: Lake, name: str) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        open_catalog(name, lake, {})


def test_what_compaction_mixed_with_news_is_not_added_again(
    lake: Lake, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emolake.pipeline.storage.shards.IN_MEMORY_ROWS", 1)
    published(lake, catalog, "run-1")
    commit_segments(lake, [segment("c"), segment("a", windows=1)], SECOND, no_fence)
    compact(lake, no_fence, 1 << 20)
    done = publish(lake, catalog, "emolake", "run-2", no_fence)
    assert [(p.segments_added, p.segments_removed) for p in done] == [(2, 1)] * 3
    for table in ("annotations", "tracks", "videos"):
        assert keys(catalog, table) == glob_keys(lake, table)
