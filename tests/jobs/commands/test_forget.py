import json
from pathlib import Path

import pytest

from emolake.jobs.cli import main
from emolake.pipeline.corpus.planning import Asked, make_plan
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.forgetting import Forgotten, begin
from emolake.pipeline.lake.iceberg import open_catalog
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.ledger import ledger_shards
from emolake.pipeline.lake.recovery import erase, recover
from emolake.pipeline.storage.files import remove_all
from tests.conftest import copy_clips
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


def full(path: Path) -> Lake:
    """Videos a, b, c; a in several versions and commits, compacted in part."""
    lake = lake_at(path)
    thumbnail = segment("a@1")
    thumbnail["tracks"][0] |= {"thumbnail": b"a face"}
    commit_segments(lake, [thumbnail, segment("b")], RUN, no_fence)
    commit_segments(lake, [segment("c", windows=0)], RUN, no_fence)
    compact(lake, NoFence(number=2), 1 << 20)
    commit_segments(lake, [segment("a@2", 0, of=2)], RUN, NoFence(number=3))
    record = {"run_id": "r", "config_hash": "c0ffee", "error": "no frame in /v/a.mp4"}
    run = path / "_runs" / "r" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps(record))
    return lake


def forget(lake: Lake, *names: object, more: tuple[str, ...] = ()) -> int:
    return main(["forget", lake.uri, *map(str, names), "--json", *more])


def traces(lake: Lake) -> list[str]:
    """Where anything of video a is still told."""
    found = [t for t in TABLES if any(str(k[0]).startswith("a") for k in glob_keys(lake, t))]
    root = Path(lake.root)
    return found + [p.name for p in root.rglob("*.json") if "/v/a.mp4" in p.read_text()]


def test_every_row_of_a_video_goes_and_the_rest_stays(tmp_path: Path, capsys) -> None:
    lake = full(tmp_path)
    assert set(traces(lake)) == {*TABLES, "run.json"}
    assert forget(lake, "/v/a.mp4") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"annotations": 4, "tracks": 2, "videos": 2}
    assert traces(lake) == []
    assert glob_keys(lake) == [("b", 0, 0), ("b", 0, 1)]
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["b", "c"]
    record = json.loads((tmp_path / "_forgotten" / f"{told['record']}.json").read_text())
    assert record["rows"] == told["rows"]
    assert record["finished_at"] >= record["begun_at"]
    assert forget(lake, "/v/a.mp4") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == dict.fromkeys(TABLES, 0)


def test_a_manifest_names_them_too(tmp_path: Path, capsys) -> None:
    lake = full(tmp_path / "lake")
    (tmp_path / "gone.csv").write_text("uri\n/v/a.mp4\n/v/c.mp4\n/v/never-seen.mp4\n")
    assert forget(lake, tmp_path / "gone.csv") == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 3
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["b"]


@pytest.mark.parametrize("deaths", range(5))
def test_killed_anywhere_the_next_run_ends_it(tmp_path: Path, monkeypatch, deaths: int) -> None:
    lake = full(tmp_path)
    with killed_at_step(deaths, monkeypatch):
        begin(lake, {"/v/a.mp4"})
        erase(lake, NoFence(number=4), {"/v/a.mp4"})
    recover(lake, NoFence(number=99))
    assert [t for t in traces(lake) if t != "run.json"] == []
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["b", "c"]


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
    assert "did not remove all rows" in capsys.readouterr().err


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


def test_a_plan_counts_the_forgotten(tmp_path: Path) -> None:
    from emolake.pipeline.config import Config
    from tests.pipeline.corpus.test_planning import HASH, listed, video

    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("b")], RunStamp("r", "2026-01-31", HASH), no_fence)
    asked = Asked(forgotten=frozenset({"/v/new.mp4"}))
    plan = make_plan(listed([video("new"), video("b")]), ledger_shards(lake), Config(), HASH, asked)
    assert plan.why_skipped == {"forgotten": 1, "done": 1}
