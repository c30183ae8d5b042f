import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from emolake.jobs.cli import main
from emolake.jobs.commands import annotate
from emolake.jobs.progress import Progress
from emolake.pipeline.config import Config
from emolake.pipeline.corpus.listing import find_videos
from emolake.pipeline.corpus.planning import Asked, make_plan
from emolake.pipeline.errors import JobFailed
from emolake.pipeline.lake import iceberg
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.forgetting import Forgotten, begin, finish, remember
from emolake.pipeline.lake.iceberg import open_catalog, publish
from emolake.pipeline.lake.labels import Labels
from emolake.pipeline.lake.layout import DATA_TABLES, LABELS, LEDGER, Lake
from emolake.pipeline.lake.lease import Fence, LeaseLost
from emolake.pipeline.lake.ledger import ledger_shards
from emolake.pipeline.lake.reading import read_annotations
from emolake.pipeline.lake.recovery import erase, recover
from emolake.pipeline.lake.runs import read_runs, write_run
from emolake.pipeline.storage.files import Storage, remove_all
from tests.conftest import copy_clips
from tests.pipeline.lake.test_labels import say
from tests.pipeline.lake.test_lake import (
    RUN,
    NoFence,
    glob_keys,
    killed_at_step,
    lake_at,
    no_fence,
    segment,
)

TABLES = (*DATA_TABLES, LEDGER)
ALL = (*TABLES, LABELS)


def full(path: Path) -> Lake:
    """Videos a, b, c; a in several versions and commits, compacted in part."""
    lake = lake_at(path)
    thumbnail = segment("a@1")
    thumbnail["tracks"][0] |= {"thumbnail": b"a face"}
    commit_segments(lake, [thumbnail, segment("b")], RUN, no_fence)
    commit_segments(lake, [segment("c", windows=0)], RUN, no_fence)
    compact(lake, NoFence(number=2), 1 << 20)
    commit_segments(lake, [segment("a@2", 0, of=2)], RUN, NoFence(number=3))
    for video in ("a@2", "a@2", "b"):
        say(lake, video)
    record = {"run_id": "r", "config_hash": "c0ffee", "error": "no frame in /v/a.mp4"}
    run = path / "_runs" / "r" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps(record))
    return lake


def forget(lake: Lake, *names: object, more: tuple[str, ...] = ()) -> int:
    return main(["forget", lake.uri, *map(str, names), "--json", *more])


def traces(lake: Lake) -> list[str]:
    """Where anything of video a is still told."""
    found = [t for t in ALL if any(str(k[0]).startswith("a") for k in glob_keys(lake, t))]
    root = Path(lake.root)
    return found + [p.name for p in root.rglob("*.json") if "/v/a.mp4" in p.read_text()]


def test_every_row_of_a_video_goes_and_the_rest_stays(tmp_path: Path, capsys) -> None:
    lake = full(tmp_path)
    assert set(traces(lake)) == {*ALL, "run.json"}
    assert forget(lake, "/v/a.mp4") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"annotations": 4, "tracks": 2, "videos": 2, "labels": 2}
    assert [row["video_id"] for row in Labels.of(lake).rows.values()] == ["b"]
    assert traces(lake) == []
    assert glob_keys(lake) == [("b", 0, 0), ("b", 0, 1)]
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["b", "c"]
    record = json.loads((tmp_path / "_forgotten" / f"{told['record']}.json").read_text())
    assert record["rows"] == told["rows"]
    assert record["finished_at"] >= record["begun_at"]
    assert forget(lake, "/v/a.mp4") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == dict.fromkeys(ALL, 0)


def test_a_manifest_names_them_too(tmp_path: Path, capsys) -> None:
    lake = full(tmp_path / "lake")
    (tmp_path / "gone.csv").write_text("uri\n/v/a.mp4\n/v/c.mp4\n/v/never-seen.mp4\n")
    assert forget(lake, tmp_path / "gone.csv") == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 2, "the third is not known here"
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["b"]


def no_traces_of_a_and_the_rest_stays(lake: Lake) -> None:
    assert [t for t in traces(lake) if t != "run.json"] == []
    assert glob_keys(lake) == [("b", 0, 0), ("b", 0, 1)]
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["b", "c"]


@pytest.mark.parametrize("deaths", range(9))
def test_killed_anywhere_the_next_run_ends_it(tmp_path: Path, monkeypatch, deaths: int) -> None:
    lake, fence = full(tmp_path), NoFence(number=4)
    recover(lake, fence)
    with killed_at_step(deaths, monkeypatch):
        begin(lake, {"/v/a.mp4"}, fence)
        erase(lake, fence, {"/v/a.mp4"})
        pytest.fail("nothing is left to be killed at")
    assert [row["video_id"] for row in read_annotations(lake.uri).to_pylist()].count("b") == 2
    for number in (99, 100):
        recover(lake, NoFence(number=number))
        no_traces_of_a_and_the_rest_stays(lake)


def test_refused_half_way_by_the_store_it_is_done_by_the_next_try(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    lake = full(tmp_path)
    with monkeypatch.context() as patch:

        def refuses_the_ledgers(fs, paths) -> None:
            paths = list(paths)
            remove_all(fs, [path for path in paths if "/videos/" not in path])
            if len(paths) and "/videos/" in paths[0]:
                raise PermissionError("denied")

        patch.setattr("emolake.pipeline.lake.layout.remove_all", refuses_the_ledgers)
        assert forget(lake, "/v/a.mp4") == 1
    assert forget(lake, "/v/a.mp4") == 0
    no_traces_of_a_and_the_rest_stays(lake)


def test_rows_whose_data_somebody_removed_are_not_carried_on_as_if_they_had_some(
    tmp_path: Path,
) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a"), segment("b")], RUN, no_fence)
    for file in lake.files("annotations"):
        lake.remove([file.path])
    begin(lake, {"/v/a.mp4"}, NoFence(number=2))
    recover(lake, NoFence(number=2))
    assert glob_keys(lake, LEDGER) == [], "b will be done again"
    assert glob_keys(lake, "tracks") == []


def test_what_a_slow_writer_brings_back_goes_at_the_next_run(tmp_path: Path) -> None:
    lake = full(tmp_path)
    assert forget(lake, "/v/a.mp4") == 0
    commit_segments(lake, [segment("a@1"), segment("d")], RUN, NoFence(number=3))
    recover(lake, NoFence(number=99))
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["b", "c", "d"]


def test_a_store_that_keeps_what_is_removed_is_told(tmp_path: Path, monkeypatch, capsys) -> None:
    lake = full(tmp_path)
    kept = [str(p) for p in tmp_path.glob("videos/**/*.parquet")]

    def denied(fs, paths) -> None:
        remove_all(fs, [path for path in paths if path not in kept])

    monkeypatch.setattr("emolake.pipeline.lake.layout.remove_all", denied)
    assert forget(lake, "/v/a.mp4") == 1
    assert "still holds some of these rows" in capsys.readouterr().err


def test_a_forgotten_video_is_annotated_again_only_where_it_is_named(
    demo_videos: Path, tmp_path: Path, capsys
) -> None:
    films = copy_clips(demo_videos, tmp_path / "films", "portrait.mp4")
    film = films / "portrait.mp4"
    output = tmp_path / "lake"
    arguments = ["--output", str(output), "--json", "--quiet"]

    def annotated(*more: str) -> dict:
        assert main(["annotate", *more, *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    assert annotated(str(films))["videos"]["annotated"] == 1
    assert forget(lake_at(output), film) == 0
    capsys.readouterr()
    assert annotated(str(films))["skipped_because"] == {"forgotten": 1}
    assert annotated(str(films), "--reprocess")["skipped_because"] == {"forgotten": 1}
    assert annotated(str(film), "--reprocess")["videos"]["annotated"] == 1
    assert str(film) not in Forgotten.of(lake_at(output))
    assert annotated(str(films))["skipped_because"] == {"done": 1}


def test_iceberg_forgets_from_a_snapshot_on_that_is_told(tmp_path: Path, capsys) -> None:
    lake = full(tmp_path / "lake")
    catalog = f"sqlite:///{tmp_path}/catalog.db"
    assert main(["publish", lake.uri, "--catalog", catalog]) == 0
    capsys.readouterr()
    assert forget(lake, "/v/a.mp4", more=("--catalog", catalog)) == 0
    told = json.loads(capsys.readouterr().out)
    table = open_catalog(catalog, lake, {}).load_table(("emolake", LEDGER))
    assert told["snapshots"][LEDGER] == table.current_snapshot().snapshot_id
    assert set(table.scan().to_arrow()["uri"].to_pylist()) == {"/v/b.mp4", "/v/c.mp4"}


def test_mistakes_are_told_before_anything_goes(tmp_path: Path, capsys) -> None:
    assert main(["forget", str(tmp_path / "no"), "/v/a.mp4"]) == 2
    assert "holds no run" in capsys.readouterr().err
    lake = full(tmp_path / "lake")
    (tmp_path / "bad.csv").write_text("name\nx\n")
    assert forget(lake, tmp_path / "bad.csv") == 2
    assert "has no column 'uri'" in capsys.readouterr().err
    assert not (tmp_path / "lake" / "_forgotten").exists()


@pytest.mark.parametrize("name", ["/v/typo.mp4", "/v/", "/v/*.mp4", "", "{manifest}"])
def test_what_an_output_has_never_heard_of_is_refused(tmp_path: Path, capsys, name: str) -> None:
    lake = full(tmp_path / "lake")
    (tmp_path / "empty.csv").write_text("uri\n")
    assert forget(lake, name.format(manifest=tmp_path / "empty.csv")) == 2
    assert "knows no video by" in capsys.readouterr().err
    assert not (tmp_path / "lake" / "_forgotten").exists()


@pytest.mark.parametrize("told", [{}, {"size": 1, "etag": "e"}])
def test_the_manifest_that_was_annotated_names_them_whatever_its_spelling(
    tmp_path: Path, capsys, told: dict
) -> None:
    film, manifest = tmp_path / "v" / "a film.mp4", tmp_path / "m.jsonl"
    film.parent.mkdir()
    film.write_bytes(b"x")
    manifest.write_text(json.dumps({"uri": f"file://{tmp_path}/v/../v/a film.mp4"} | told))
    ((row,),) = [t.to_pylist() for t in find_videos([str(manifest)], Storage())]
    assert row["uri"] == str(film)
    lake = lake_at(tmp_path / "lake [1]")
    commit_segments(
        lake, [segment("a") | {"uri": row["uri"]}, segment("b") | {"uri": "s3://k/b.mp4"}], RUN, no_fence
    )  # fmt: skip
    write_run(lake, {"run_id": "r", "error": f"no frame in {film}", "finished_at": "2026"})
    assert forget(lake, manifest) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["annotations"] == 2
    assert read_runs(lake)[0]["error"] == "no frame in (forgotten)"
    assert forget(lake, "s3a://k/b.mp4") == 0
    assert glob_keys(lake) == []


def test_a_forgetter_that_slept_does_not_forget_what_was_asked_for_since(tmp_path: Path) -> None:
    lake = full(tmp_path)
    record = begin(lake, {"/v/a.mp4"}, NoFence(number=5))
    remember(lake, {"/v/a.mp4"}, NoFence(number=6))
    finish(lake, record, {})
    assert "/v/a.mp4" not in Forgotten.of(lake)
    begin(lake, {"/v/a.mp4"}, NoFence(number=7))
    assert "/v/a.mp4" in Forgotten.of(lake)


def test_many_that_are_forgotten_are_looked_up_at_once(tmp_path: Path) -> None:
    lake = full(tmp_path)
    for number in range(5, 9):
        begin(lake, {f"/v/{number}/{k}.mp4" for k in range(5)}, NoFence(number=number))
    forgotten = Forgotten.of(lake)
    assert len(forgotten.salts) == 1
    assert "/v/8/4.mp4" in forgotten
    assert "/v/9/4.mp4" not in forgotten


def catalogue(lake: Lake, tmp_path: Path) -> tuple[str, str]:
    told = ("--catalog", f"sqlite:///{tmp_path}/catalog.db")
    assert main(["publish", lake.uri, *told]) == 0
    return told


def in_iceberg(lake: Lake, tmp_path: Path) -> set[str]:
    catalog = open_catalog(f"sqlite:///{tmp_path}/catalog.db", lake, {})
    tables = [catalog.load_table(("emolake", name)).scan().to_arrow() for name in TABLES]
    return {uri for table in tables for uri in table["uri"].to_pylist()}


def test_a_published_output_asks_for_its_catalogue(tmp_path: Path, capsys) -> None:
    lake = full(tmp_path / "lake")
    catalogue(lake, tmp_path)
    assert forget(lake, "/v/a.mp4") == 2
    assert "name their --catalog" in capsys.readouterr().err


def test_the_last_video_leaves_iceberg_too(tmp_path: Path, capsys) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    assert forget(lake, "/v/a.mp4", "/v/b.mp4", more=told) == 0
    fence = NoFence(number=9)
    begin(lake, {"/v/c.mp4"}, fence)  # killed before it came to the catalogue
    erase(lake, fence, {"/v/c.mp4"})
    assert forget(lake, "/v/c.mp4", more=told) == 0
    assert in_iceberg(lake, tmp_path) == set()
    assert main(["publish", lake.uri, *told]) == 0


def test_who_publishes_after_a_killed_forgetter_publishes_nothing_of_it(tmp_path: Path) -> None:
    lake = full(tmp_path / "lake")
    begin(lake, {"/v/a.mp4"}, NoFence(number=9))
    catalogue(lake, tmp_path)
    assert in_iceberg(lake, tmp_path) == {"/v/b.mp4", "/v/c.mp4"}


def test_what_a_killed_publishing_left_goes_too(tmp_path: Path, monkeypatch) -> None:
    lake = full(tmp_path / "lake")
    with monkeypatch.context() as patch:
        patch.setattr(Fence, "__call__", lambda self: 1 / 0)
        patch.setattr(iceberg, "_withdraw", lambda *_: None)  # the killed do nothing more
        catalog = open_catalog(f"sqlite:///{tmp_path}/catalog.db", lake, {})
        with pytest.raises(ZeroDivisionError):
            publish(lake, catalog, "emolake", "r", Fence(lake, 1))
    assert list((tmp_path / "lake" / "_iceberg").rglob("*.parquet"))
    told = catalogue(lake, tmp_path)
    assert forget(lake, "/v/a.mp4", more=told) == 0
    named, manifests = set(), set()
    for name in TABLES:
        table = open_catalog(told[1], lake, {}).load_table(("emolake", name))
        named |= {Path(p).name for p in table.inspect.all_files()["file_path"].to_pylist()}
        manifests |= {Path(p).name for p in table.inspect.all_manifests()["path"].to_pylist()}
    warehouse = tmp_path / "lake" / "_iceberg"
    assert {p.name for p in warehouse.rglob("*.parquet")} == named
    assert {p.name for p in warehouse.rglob("*-m*.avro")} == manifests, (
        "their bounds tell of it too"
    )


@pytest.mark.parametrize(
    ("catalog", "namespace"),
    [("reel.db", "emolake"), ("catalog.db", "archive"), ("catalog.db", "")],
)
def test_a_catalogue_that_was_not_published_to_is_refused_before_anything_goes(
    tmp_path: Path, capsys, catalog: str, namespace: str
) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    before = sorted((tmp_path / "lake").rglob("*"))
    wrong = ("--catalog", f"sqlite:///{tmp_path}/{catalog}", "--namespace", namespace)
    assert forget(lake, "/v/a.mp4", more=wrong) == 2
    assert "namespace" in capsys.readouterr().err
    assert sorted((tmp_path / "lake").rglob("*")) == before
    assert forget(lake, "/v/a.mp4", more=told) == 0
    assert in_iceberg(lake, tmp_path) == {"/v/b.mp4", "/v/c.mp4"}


def test_tables_of_which_some_were_never_made_are_no_hindrance(tmp_path: Path) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    open_catalog(told[1], lake, {}).drop_table(("emolake", "videos"))
    assert forget(lake, "/v/a.mp4", more=told) == 0
    assert in_iceberg(lake, tmp_path) == {"/v/b.mp4", "/v/c.mp4"}


def test_a_publisher_that_wakes_up_after_the_forgetter_leaves_no_file(tmp_path: Path) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    commit_segments(lake, [segment("d")], RUN, NoFence(number=5))

    def overtaken() -> None:
        assert forget(lake, "/v/d.mp4", more=told) == 0
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        publish(lake, open_catalog(told[1], lake, {}), "emolake", "slow", overtaken)
    assert not [p for p in (tmp_path / "lake" / "_iceberg").rglob("*.parquet") if tells_of_d(p)]


def test_a_publisher_that_cannot_commit_takes_its_files_with_it(tmp_path: Path) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    before = set((tmp_path / "lake" / "_iceberg").rglob("*.parquet"))
    commit_segments(lake, [segment("d")], RUN, NoFence(number=5))

    def overtaken() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        publish(lake, open_catalog(told[1], lake, {}), "emolake", "slow", overtaken)
    assert set((tmp_path / "lake" / "_iceberg").rglob("*.parquet")) == before


def test_a_publisher_whose_rows_go_while_it_sleeps_leaves_no_file(
    tmp_path: Path, monkeypatch
) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    for video in "de":
        commit_segments(lake, [segment(video)], RUN, NoFence(number=5))
    monkeypatch.setattr(iceberg, "_FLUSH_BYTES", 1)
    write, slept = iceberg._data_files, []

    def sleepy(*arguments):
        if not slept:
            slept.append(True)
            assert forget(lake, "/v/d.mp4", "/v/e.mp4", more=told) == 0
        return write(*arguments)

    monkeypatch.setattr(iceberg, "_data_files", sleepy)

    def overtaken() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        publish(lake, open_catalog(told[1], lake, {}), "emolake", "slow", overtaken)
    assert slept
    assert not [p for p in (tmp_path / "lake" / "_iceberg").rglob("*.parquet") if tells_of_d(p)]


def test_metadata_that_a_killed_publishing_left_half_written_stops_nobody(tmp_path: Path) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    for metadata in (tmp_path / "lake" / "_iceberg").rglob("metadata"):
        (metadata / "00009-f00.metadata.json").write_bytes(b"")
    assert forget(lake, "/v/a.mp4", more=told) == 0
    assert in_iceberg(lake, tmp_path) == {"/v/b.mp4", "/v/c.mp4"}


def test_empty_tables_of_just_our_columns_are_ours(tmp_path: Path) -> None:
    lake = full(tmp_path / "lake")
    catalog = open_catalog(f"sqlite:///{tmp_path}/catalog.db", lake, {})
    catalog.create_namespace("emolake")
    for name in TABLES:
        catalog.create_table(("emolake", name), iceberg.table_schema(name))
    catalogue(lake, tmp_path)
    assert in_iceberg(lake, tmp_path) == {"/v/a.mp4", "/v/b.mp4", "/v/c.mp4"}


def tells_of_d(path: Path) -> bool:
    return "/v/d.mp4" in pq.read_table(path)["uri"].to_pylist()


def test_what_a_killed_publishing_left_goes_however_the_output_is_spelt(
    tmp_path: Path, monkeypatch
) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    commit_segments(lake, [segment("d")], RUN, NoFence(number=5))
    with monkeypatch.context() as patch:
        patch.setattr(Fence, "__call__", lambda self: 1 / 0)
        patch.setattr(iceberg, "_withdraw", lambda *_: None)  # the killed do nothing more
        with pytest.raises(ZeroDivisionError):
            publish(lake, open_catalog(told[1], lake, {}), "emolake", "r", Fence(lake, 5))
    (tmp_path / "link").symlink_to(tmp_path / "lake")
    assert forget(lake_at(tmp_path / "link"), "/v/d.mp4", more=told) == 0
    assert not [p for p in (tmp_path / "lake" / "_iceberg").rglob("*.parquet") if tells_of_d(p)]


def test_two_catalogues_of_one_output_share_no_file(tmp_path: Path) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)
    second = ("--catalog", f"sqlite:///{tmp_path}/second.db")
    assert main(["publish", lake.uri, *second]) == 0
    assert forget(lake, "/v/a.mp4", more=second) == 0
    assert in_iceberg(lake, tmp_path) == {"/v/a.mp4", "/v/b.mp4", "/v/c.mp4"}
    assert forget(lake, "/v/a.mp4", more=told) == 0
    assert in_iceberg(lake, tmp_path) == {"/v/b.mp4", "/v/c.mp4"}


def test_what_comes_back_while_it_is_forgotten_is_not_published(
    tmp_path: Path, monkeypatch
) -> None:
    lake = full(tmp_path / "lake")
    told = catalogue(lake, tmp_path)

    def comes_back(*arguments) -> dict[str, int]:
        rows = erase(*arguments)
        commit_segments(lake, [segment("a@2")], RUN, NoFence(number=0))
        return rows

    with monkeypatch.context() as patch:
        patch.setattr("emolake.jobs.commands.forget.erase", comes_back)
        assert forget(lake, "/v/a.mp4", more=told) == 0
    assert in_iceberg(lake, tmp_path) == {"/v/b.mp4", "/v/c.mp4"}
    assert set(read_annotations(lake.uri)["video_id"].to_pylist()) == {"b"}


def test_run_records_tell_nothing_of_it_where_a_quotation_was_cut_or_never_ended(
    tmp_path: Path,
) -> None:
    lake, uri = lake_at(tmp_path), "/archive/2026/somebody.mp4"
    words = "the output cannot be written since " * 8
    commit_segments(lake, [segment("a", uri=uri), segment("b")], RUN, no_fence)
    write_run(
        lake,
        {
            "run_id": "r",
            "config_hash": "c",
            "error": f"{words}{uri[:-6]}",
            "folder": "/archive/2026",
        },
    )
    (tmp_path / "_runs" / "r" / ".run.json.f00.partial").write_text(f'{{"error": "{uri}')
    assert forget(lake, uri) == 0
    told = [p.read_text() for p in (tmp_path / "_runs" / "r").iterdir()]
    assert len(told) == 1
    assert "some" not in told[0]
    assert "/archive/2026" in told[0]


@pytest.mark.parametrize(
    ("uri", "quoted"),
    [
        ("/v/jane  doe.mp4", "no frame in /v/jane doe.mp4"),
        ("https://h/jane-doe.mp4", "https://...@h/jane-doe.mp4 404"),
        ("/v/jane-doe-interview.mp4", "x" * 200 + " /v/jane-doe-int; mend it"),
        ("/archive/jane-doe/1.mp4", "x" * 200 + " /archive/jane-do"),
        (f"/v/jane-doe/{'y' * 300}.mp4", f"failed, at /v/jane-doe/{'y' * 288} segment 3; anew"),
    ],
)
def test_run_records_tell_nothing_of_it_however_they_quote_it(
    tmp_path: Path, uri: str, quoted: str
) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a", uri=uri)], RUN, no_fence)
    write_run(lake, {"run_id": "r", "config_hash": "c", "error": quoted})
    assert forget(lake, uri) == 0
    assert "jane" not in (tmp_path / "_runs" / "r" / "run.json").read_text()


def test_what_a_run_record_quotes_is_blackened_and_nothing_else(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a", uri="https://h/annotate-v2")], RUN, no_fence)
    told = {"model": {"name": "annotate-v2"}, "config_hash": "c"}
    write_run(lake, {"run_id": "r", "devices": ["CUDA error, at annotate-v2 segment 3"]} | told)
    assert forget(lake, "https://h/annotate-v2") == 0
    record = json.loads((tmp_path / "_runs" / "r" / "run.json").read_text())
    assert record["devices"] == ["CUDA error, at (forgotten) segment 3"]
    assert record["model"]["name"] == "annotate-v2"


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_that_lost_the_output_writes_no_name_into_its_record_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    lake = full(tmp_path)
    failed = "the device failed, at /v/a.mp4 segment 0"
    blackened = {"run_id": "late", "config_hash": "c", "state": "running"}

    def overtaken(_setting: object, _run: object, record: dict, *_: object) -> dict:
        (held,) = (tmp_path / "_lease").iterdir()
        held.with_name(f"{int(held.stem) + 1:0{len(held.stem)}}.json").write_bytes(
            held.read_bytes()
        )
        write_run(lake, blackened)
        if not ends:
            raise JobFailed(failed)
        return record | {"devices": [failed]}

    monkeypatch.setattr(annotate, "_run", overtaken)
    monkeypatch.setattr(annotate, "find_videos", lambda *_: iter(()))
    setting = SimpleNamespace(
        lake=lake, storage=Storage(), config=Config(), config_hash="c",
        asked=Asked(), models=[SimpleNamespace(told={}, config=None)],
    )  # fmt: skip
    with Progress(quiet=True) as progress, pytest.raises(LeaseLost if ends else JobFailed):
        annotate._job(SimpleNamespace(input=["/v"]), setting, "late", progress)
    assert json.loads((tmp_path / "_runs" / "late" / "run.json").read_text()) == blackened


def test_what_is_quoted_of_another_in_the_same_long_folder_stays(tmp_path: Path) -> None:
    lake, folder = lake_at(tmp_path), f"/archive/{'d' * 220}"
    commit_segments(lake, [segment("a", uri=f"{folder}/jane.mp4")], RUN, no_fence)
    told = f"failed, at {folder}/other.mp4 segment 3"
    write_run(lake, {"run_id": "r", "config_hash": "c", "error": told})
    assert forget(lake, f"{folder}/jane.mp4") == 0
    assert json.loads((tmp_path / "_runs" / "r" / "run.json").read_text())["error"] == told


def test_a_manifest_keeps_away_what_no_run_has_met_yet(tmp_path: Path, capsys) -> None:
    lake, manifest = full(tmp_path / "lake"), tmp_path / "m.jsonl"
    manifest.write_text('{"uri": "/v/a.mp4"}\n{"uri": "/v/tomorrow.mp4"}\n')
    assert forget(lake, manifest) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 1
    assert "/v/tomorrow.mp4" in Forgotten.of(lake)


def test_whoever_finishes_for_a_killed_forgetter_blackens_the_records_too(tmp_path: Path) -> None:
    lake = full(tmp_path)
    begin(lake, {"/v/a.mp4"}, NoFence(number=9))
    recover(lake, NoFence(number=10))
    assert traces(lake) == []


def test_another_outputs_tables_are_left_alone(tmp_path: Path, capsys) -> None:
    lake, other = full(tmp_path / "lake"), full(tmp_path / "other")
    told = catalogue(lake, tmp_path)
    assert main(["publish", other.uri, *told]) == 2
    assert "choose another --namespace" in capsys.readouterr().err
    assert forget(other, "/v/a.mp4", more=told) == 2
    assert in_iceberg(lake, tmp_path) == {"/v/a.mp4", "/v/b.mp4", "/v/c.mp4"}
    assert main(["publish", other.uri, *told, "--namespace", "other"]) == 0
    assert main(["publish", other.uri, *told, "--namespace", " "]) == 2


def test_a_plan_counts_the_forgotten(tmp_path: Path) -> None:
    from emolake.pipeline.config import Config
    from tests.pipeline.corpus.test_planning import HASH, listed, video

    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("b")], RunStamp("r", "2026-01-31", HASH), no_fence)
    asked = Asked(forgotten=frozenset({"/v/new.mp4"}))
    plan = make_plan(listed([video("new"), video("b")]), ledger_shards(lake), Config(), HASH, asked)
    assert plan.why_skipped == {"forgotten": 1, "done": 1}
