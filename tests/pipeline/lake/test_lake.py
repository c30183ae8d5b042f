import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from emolake.jobs.cli import main
from emolake.pipeline.errors import UserError
from emolake.pipeline.lake import commit, compaction, order
from emolake.pipeline.lake.commit import RunStamp, commit_segments, time_weighted_scores
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.forgetting import begin
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.lease import Fence, LeaseLost
from emolake.pipeline.lake.ledger import (
    Ledger,
    ledger_parts,
    ledger_shards,
    newest_versions,
    video_states,
)
from emolake.pipeline.lake.order import new_commit_id
from emolake.pipeline.lake.reading import (
    FilesChanged,
    Snapshot,
    live_rows,
    read_annotations,
    read_tracks,
    stream,
)
from emolake.pipeline.lake.recovery import recover
from emolake.pipeline.lake.schema import TABLES, VIDEOS
from emolake.pipeline.storage import shards
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.traffic import ours

RUN = RunStamp("run-1", "2026-01-31", "c0ffee")
BOX = {"x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.6}


@dataclass(frozen=True)
class NoFence(Fence):
    """Lets everything through, or fails as told."""

    lake: Lake | None = None
    number: int = 1
    error: BaseException | None = None

    def __call__(self) -> None:
        if self.error is not None:
            raise self.error


no_fence = NoFence()
the_next = NoFence(number=2)


def lake_at(path: Path) -> Lake:
    return Lake.at(str(path), Storage())


def ledger(lake: Lake) -> Ledger:
    (part,) = ledger_parts(ledger_shards(lake, whole=True))
    return part


def segment(
    video: str, index: int = 0, *, of: int = 1, windows: int = 2, **changes: object
) -> dict:
    annotations = [
        {
            "track_id": 0, "window": w, "start_s": 2.0 * w, "end_s": 2.0 * w + 2, "n_frames": 8,
            "n_interpolated": 0,
            "bbox": BOX, "emotion": "fear", "confidence": 0.75,
            "scores": [("fear", 0.75), ("anger", 0.25)], "model": "m", "model_revision": "r",
        }
        for w in range(windows)
    ]  # fmt: skip
    track = {
        "track_id": 0, "start_s": 0.0, "end_s": 4.0, "n_detections": 9, "mean_score": 0.9,
        "mean_box": BOX, "n_interpolated": 1, "person_id": None, "path": [], "thumbnail": None,
    }  # fmt: skip
    row = {
        "video_id": video, "uri": f"/v/{video.split('@')[0]}.mp4", "size": 10, "corpus": "c",
        "attempt": 1, "segment": index, "n_segments": of, "reason": None, "detail": None,
        "duration_s": 4.0, "fps": 25.0, "width": 64, "height": 48, "codec": "h264", "failed": False,
        "n_dropped_tracks": 0, "tracks": [track] if windows else [], "annotations": annotations,
    }  # fmt: skip
    return row | changes


def glob_keys(lake: Lake, table: str = "annotations") -> list[tuple]:
    folder = Path(lake.root) / table
    if not folder.exists():
        return []
    rows = ds.dataset(folder, format="parquet", partitioning="hive").to_table().to_pylist()
    return sorted((r["video_id"], r["segment"], r.get("window")) for r in rows)


def files(lake: Lake) -> list[str]:
    return [f.path for table in (*DATA_TABLES, LEDGER) for f in lake.files(table)]


@contextlib.contextmanager
def killed_at_step(deaths: int, monkeypatch) -> Iterator[None]:
    """The block dies before its write or removal number `deaths`, counted from 0."""
    steps = 0

    def dying(original):
        def step(*arguments):
            nonlocal steps
            if steps == deaths:
                raise KeyboardInterrupt
            steps += 1
            return original(*arguments)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "write_table", dying(Lake.write_table))
        patch.setattr(Lake, "create_table", dying(Lake.create_table))
        patch.setattr(Lake, "remove", dying(Lake.remove))
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_commit_shows_in_all_three_tables(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("b"), segment("a"), segment("n", windows=0)], RUN, no_fence)
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1), ("b", 0, 0), ("b", 0, 1)]
    states = video_states(ledger(lake).live)
    assert {k: s.state for k, s in states.items()} == {
        "a": "annotated",
        "b": "annotated",
        "n": "no_face",
    }
    assert len(files(lake)) == 3


def test_what_dies_before_the_ledger_is_an_orphan_and_is_removed(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a")], RUN, no_fence)

    with pytest.raises(LeaseLost):
        commit_segments(lake, [segment("b")], RUN, NoFence(error=LeaseLost("lost")))
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1)], "who is stopped cleans up"

    with pytest.raises(KeyboardInterrupt):
        commit_segments(lake, [segment("b")], RUN, NoFence(error=KeyboardInterrupt()))
    assert ("b", 0, 0) in glob_keys(lake)
    assert "b" not in video_states(ledger(lake).live)
    aside = (
        Path(lake.root)
        / "tracks/corpus=c"
        / f"date={RUN.date}"
        / f".{new_commit_id(1)}.parquet.0.partial"
    )
    aside.write_bytes(b"PAR1")
    recover(lake, no_fence)
    assert aside.exists(), "what is of the lease itself may still be under way"
    recover(lake, the_next)
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1)]
    assert not aside.exists()


def test_a_large_file_is_sorted_and_tells_what_it_holds(tmp_path) -> None:
    lake = lake_at(tmp_path)
    names = [f"{k * 7919 % 400:04d}" for k in range(400)]
    commit_segments(lake, [segment(name, windows=30) for name in names], RUN, no_fence)
    (path,) = (f.path for f in lake.files("annotations"))
    group = pq.ParquetFile(path).metadata.row_group(0)
    assert [c.column_index for c in group.sorting_columns] == [0, 2, 3, 4], "as sort_keys says"
    columns = {group.column(k).path_in_schema: group.column(k) for k in range(group.num_columns)}
    assert columns["video_id"].statistics.min == "0000"
    assert columns["video_id"].statistics.max == "0399"


def test_a_segment_written_twice_stands_once_after_settling(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a"), segment("b")], RUN, no_fence)
    commit_segments(lake, [segment("b", windows=1)], RUN, no_fence)
    assert glob_keys(lake).count(("b", 0, 0)) == 2
    recover(lake, no_fence)
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1), ("b", 0, 0)]
    assert glob_keys(lake, LEDGER) == [("a", 0, None), ("b", 0, None)]
    settled = files(lake)
    recover(lake, no_fence)
    assert files(lake) == settled


def test_a_changed_object_replaces_its_rows_only_when_it_is_whole(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("v@1", windows=2), segment("w")], RUN, no_fence)
    commit_segments(lake, [segment("v@2", 0, of=2, windows=1)], RUN, no_fence)
    recover(lake, no_fence)
    live = video_states(ledger(lake).live)
    assert "v@1" in live, "the old version counts until the new one is whole"
    newest = video_states(newest_versions(ledger(lake).rows))
    assert newest["v@2"].segments == {0}, "and what is done of the new one is known"
    commit_segments(lake, [segment("v@2", 1, of=2, windows=1)], RUN, no_fence)
    recover(lake, no_fence)
    assert glob_keys(lake) == [("v@2", 0, 0), ("v@2", 1, 0), ("w", 0, 0), ("w", 0, 1)]


@pytest.mark.parametrize("deaths", range(6))
def test_settling_killed_anywhere_is_finished_by_the_next(
    tmp_path, monkeypatch, deaths: int
) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a"), segment("b")], RUN, no_fence)
    commit_segments(lake, [segment("b", windows=1)], RUN, no_fence)
    with killed_at_step(deaths, monkeypatch):
        recover(lake, no_fence)
    recover(lake, the_next)
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1), ("b", 0, 0)]
    assert glob_keys(lake, "tracks") == [("a", 0, None), ("b", 0, None)]
    assert glob_keys(lake, LEDGER) == [("a", 0, None), ("b", 0, None)]


def many_commits(path: Path) -> Lake:
    lake = lake_at(path)
    for k in range(6):
        commit_segments(lake, [segment(f"v{k}"), segment(f"n{k}", windows=0)], RUN, no_fence)
    commit_segments(lake, [segment("v0", windows=1)], RUN, no_fence)  # replaces the first
    return lake


def test_compaction_leaves_few_files_and_the_same_rows(tmp_path) -> None:
    lake = many_commits(tmp_path)
    before = read_annotations(str(tmp_path)).sort_by("video_id").to_pylist()
    done = compact(lake, no_fence, 1 << 20)
    assert (done.files_before, done.files_after) == (21, 3)
    assert read_annotations(str(tmp_path)).sort_by("video_id").to_pylist() == before
    assert len(glob_keys(lake)) == len(set(glob_keys(lake))) == 11
    assert compact(lake, no_fence, 1 << 20).files_after == 3
    keys = [(r["video_id"], r["window"]) for r in read_annotations(str(tmp_path)).to_pylist()]
    assert keys == sorted(keys)


def test_compaction_keeps_to_the_size_that_is_wanted(tmp_path) -> None:
    lake = many_commits(tmp_path)
    sizes = [lake.fs.size(f.path) for f in lake.files("videos")]
    done = compact(lake, no_fence, 3 * max(sizes))
    assert 3 < done.files_after < done.files_before


@pytest.mark.parametrize("deaths", range(10))
def test_compaction_killed_anywhere_loses_and_doubles_nothing(
    tmp_path, monkeypatch, deaths: int
) -> None:
    lake = many_commits(tmp_path)
    wanted = sorted(r["video_id"] for r in read_annotations(str(tmp_path)).to_pylist())
    with killed_at_step(deaths, monkeypatch):
        compact(lake, no_fence, 1 << 20)
    seen = sorted(r["video_id"] for r in read_annotations(str(tmp_path)).to_pylist())
    assert seen == wanted, "a reader of the ledger sees no difference, at no step"
    recover(lake, the_next)
    assert sorted(key[0] for key in glob_keys(lake)) == wanted
    assert len(glob_keys(lake, LEDGER)) == 12


def test_a_reader_beside_compaction_reads_again(tmp_path, monkeypatch) -> None:
    lake = many_commits(tmp_path)
    wanted = read_annotations(str(tmp_path)).num_rows
    original, done = Lake.files, []

    def files(self: Lake, table: str) -> list:
        if table == "annotations" and not done:
            done.append(True)
            compact(lake, no_fence, 1 << 20)  # between the ledger and its files
        return original(self, table)

    monkeypatch.setattr(Lake, "files", files)
    assert read_annotations(str(tmp_path)).num_rows == wanted
    assert done


def test_a_run_bears_what_a_sleeper_removes_under_its_feet(tmp_path, monkeypatch) -> None:
    lake = many_commits(tmp_path)
    rows = read_annotations(str(tmp_path)).to_pylist()
    wanted = sorted((r["video_id"], r["segment"], r["window"]) for r in rows)
    remove, files, late = Lake.remove, Lake.files, []
    monkeypatch.setattr(Lake, "remove", lambda self, paths: late.extend(paths))
    compact(lake, no_fence, 1 << 20)  # it falls asleep before its removals
    monkeypatch.setattr(Lake, "remove", remove)
    assert len(late) > 12

    def listed(self: Lake, table: str) -> list:
        found = files(self, table)
        if table == LEDGER and late:
            remove(self, late)
            late.clear()
        return found

    monkeypatch.setattr(Lake, "files", listed)
    recover(lake, the_next)
    assert not late
    assert glob_keys(lake) == wanted


def test_a_reader_reads_again_where_a_commit_went_and_a_sleeper_took_its_place(
    tmp_path, monkeypatch
) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a")], RUN, no_fence)
    (old,) = lake.files(LEDGER)
    original, listed = Lake.files, []

    def files(self: Lake, table: str) -> list:
        found = original(self, table)
        listed.append(table)
        if listed == [LEDGER, LEDGER]:  # of the second one the reader now reads what it names
            commit_segments(lake, [segment("a")], RUN, NoFence(number=2))
            lake.remove([old.path])
            assert lake.create_table(old.path, VIDEOS.empty_table())
        return found

    monkeypatch.setattr(Lake, "files", files)
    assert live_rows(lake, LEDGER)["video_id"].to_pylist() == ["a"]
    assert listed.count(LEDGER) > 3


def test_a_video_with_a_failed_segment_is_failed_and_keeps_the_others(tmp_path) -> None:
    lake = lake_at(tmp_path)
    bad = segment("a", 1, of=2, windows=0, failed=True, reason="timeout", attempt=2)
    commit_segments(lake, [segment("a", 0, of=2), bad], RUN, no_fence)
    state = video_states(ledger(lake).live)["a"]
    assert (state.state, state.reason, state.failed) == ("failed", "timeout", {1: ("timeout", 2)})
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1)]


@contextlib.contextmanager
def clock_of(monkeypatch, hours: float) -> Iterator[None]:
    """What is written within bears the time of a clock that is wrong by so much."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    with monkeypatch.context() as patch:
        patch.setattr(commit, "datetime", Clock)
        patch.setattr(order.time, "time_ns", lambda: int((1.8e9 + hours * 3600) * 1e9))
        yield


def test_a_fast_clock_discards_no_newer_work(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    failed = segment("a", windows=0, failed=True, reason="timeout")
    with clock_of(monkeypatch, +3):
        commit_segments(lake, [failed], RUN, no_fence)
    commit_segments(lake, [segment("a", attempt=2)], RUN, the_next)
    recover(lake, the_next)
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1)]
    assert video_states(ledger(lake).live)["a"].state == "annotated"


def test_within_a_run_the_try_that_worked_counts(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    failed = segment("a", windows=0, failed=True, reason="timeout")
    commit_segments(lake, [segment("a")], RUN, no_fence)
    with clock_of(monkeypatch, +3):
        commit_segments(lake, [failed], RUN, no_fence)
    recover(lake, the_next)
    assert video_states(ledger(lake).live)["a"].state == "annotated"
    assert glob_keys(lake) == [("a", 0, 0), ("a", 0, 1)]


@pytest.mark.parametrize("hours", [-5, 5])
@pytest.mark.parametrize("deaths", range(6))
def test_a_compactor_with_a_wrong_clock_killed_anywhere_loses_nothing(
    tmp_path, monkeypatch, deaths: int, hours: float
) -> None:
    lake = lake_at(tmp_path)
    for name in "abc":
        commit_segments(lake, [segment(name, windows=1)], RUN, no_fence)
    with clock_of(monkeypatch, hours), killed_at_step(deaths, monkeypatch):
        compact(lake, the_next, 1 << 20)
    recover(lake, NoFence(number=3))
    assert [key[0] for key in glob_keys(lake)] == ["a", "b", "c"]


def test_a_version_that_is_not_whole_stays_newer_when_the_older_is_compacted(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("v@1")], RUN, no_fence)
    commit_segments(lake, [segment("w")], RUN, no_fence)
    later = RunStamp("run-2", "2026-02-01", "c0ffee")
    commit_segments(lake, [segment("v@2", 0, of=2)], later, the_next)
    compact(lake, NoFence(number=3), 1 << 20)
    commit_segments(lake, [segment("v@2", 1, of=2)], later, NoFence(number=3))
    assert "v@2" in video_states(ledger(lake).live)


def night(lake: Lake, number: int, rows: list[dict]) -> None:
    recover(lake, NoFence(number=number))
    commit_segments(lake, rows, RUN, NoFence(number=number))
    recover(lake, NoFence(number=number), own=True)


def test_a_version_of_which_some_may_still_work_replaces_nothing_that_worked(tmp_path) -> None:
    lake = lake_at(tmp_path)
    night(lake, 1, [segment("v", k, of=4) for k in range(4)])
    passing = [
        segment("v", k, of=3, windows=0, failed=True, reason="storage_error") for k in (1, 2)
    ]
    night(lake, 2, [segment("v", 0, of=3), *passing])
    assert {k[1] for k in glob_keys(lake)} >= {0, 1, 2, 3}
    assert video_states(ledger(lake).live)["v"].n_segments == 4
    night(lake, 3, [segment("v", k, of=3, attempt=2) for k in (1, 2)])
    assert {k[1] for k in glob_keys(lake)} == {0, 1, 2}
    assert set(ledger(lake).rows["n_segments"].to_pylist()) == {3}


def test_a_failure_and_nothing_else_shields_nothing_from_what_works_of_a_newer_version(
    tmp_path,
) -> None:
    lake = lake_at(tmp_path)
    night(lake, 1, [segment("v@1", windows=0, failed=True, reason="not_a_video")])
    late = segment("v@2", 2, of=3, windows=0, failed=True, reason="timeout")
    night(lake, 2, [segment("v@2", k, of=3) for k in (0, 1)])
    assert set(ledger(lake).live["video_id"].to_pylist()) == {"v@1"}  # not all of it is there yet
    night(lake, 3, [late])
    assert set(ledger(lake).live["video_id"].to_pylist()) == {"v@2"}
    assert {k[:2] for k in glob_keys(lake)} == {("v@2", 0), ("v@2", 1)}
    # A file that has become another, and is none any more, is what it is.
    night(lake, 4, [segment("v@3", windows=0, failed=True, reason="not_a_video")])
    assert glob_keys(lake) == [k for k in glob_keys(lake) if k[0] == "v@2"]
    night(lake, 5, [segment("v@2", 2, of=3)])
    night(lake, 6, [segment("v@4", windows=0, failed=True, reason="not_a_video")])
    assert glob_keys(lake) == []


@pytest.mark.parametrize("useless", [True, False])
@pytest.mark.parametrize("state", ["timeout", "annotated"])
def test_a_failure_that_may_pass_replaces_nothing_that_worked_of_an_unfinished_version(
    tmp_path, useless: bool, state: str
) -> None:
    lake = lake_at(tmp_path)
    failed = partial(segment, windows=0, failed=True)
    if useless:
        night(lake, 1, [failed("v@1", reason="not_a_video")])
    night(lake, 2, [segment("v@2", 0, of=2), failed("v@2", 1, of=2, reason="timeout")])
    third = (
        segment("v@3", 0, of=3)
        if state == "annotated"
        else failed("v@3", 0, of=3, reason="too_large")
    )
    night(lake, 3, [third, *(failed("v@3", k, of=3, reason="timeout") for k in (1, 2))])
    assert {k[:2] for k in glob_keys(lake)} >= {("v@2", 0)}
    assert set(ledger(lake).live["video_id"].to_pylist()) == {"v@2"}
    night(lake, 4, [segment("v@3", k, of=3, attempt=2) for k in range(3)])
    assert {k[:2] for k in glob_keys(lake)} == {("v@3", k) for k in range(3)}


def test_an_unfinished_version_stays_until_more_of_a_newer_one_works(tmp_path) -> None:
    lake = lake_at(tmp_path)
    night(lake, 1, [segment("v@1", k, of=3) for k in (0, 1)])  # killed
    night(lake, 2, [segment("v@2", windows=0, failed=True, reason="timeout")])
    assert {k[:2] for k in glob_keys(lake)} == {("v@1", 0), ("v@1", 1)}
    night(
        lake,
        3,
        [
            segment("v@3", 0, of=2),
            segment("v@3", 1, of=2, windows=0, failed=True, reason="timeout"),
        ],
    )
    assert {k[:2] for k in glob_keys(lake)} == {("v@3", 0)}


def test_an_output_is_told_without_what_opens_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Storage, "locate", lambda *_: (LocalFileSystem(), str(tmp_path)))
    assert Lake.at("sftp://me:f00@nas/out", Storage()).uri == "sftp://nas/out"


def test_a_copy_of_an_output_within_it_is_not_read_nor_removed(tmp_path) -> None:
    lake = lake_at(tmp_path / "out")
    night(lake, 1, [segment("a")])
    inner = tmp_path / "out" / "annotations" / "z-backup"
    for table in (LEDGER, "annotations", "tracks"):
        shutil.copytree(tmp_path / "out" / table, inner / table, ignore=lambda *_: ["z-backup"])
        shutil.copytree(tmp_path / "out" / table, tmp_path / "out" / LEDGER / table)
    before = sorted(path for path in inner.rglob("*.parquet"))
    assert len(before) == 3
    others = [
        inner
        / "annotations"
        / "corpus=c"
        / "date=2026-01-31"
        / ".L000000001-000-0123456789abcdef-01234567.parquet.0f.partial",
        tmp_path / "out" / "_runs" / "copy" / "x" / ".run.json.0f.partial",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert len(lake.files("annotations")) == len(lake.files(LEDGER)) == 1
    night(lake, 2, [segment("a")])
    assert sorted(path for path in inner.rglob("*.parquet")) == before
    assert all(path.exists() for path in others)
    assert live_rows(lake, "annotations").num_rows == 2


def test_a_passing_failure_of_an_object_that_changed_since_goes_with_it(tmp_path) -> None:
    lake = lake_at(tmp_path)
    night(lake, 1, [segment("v@1"), segment("w")])
    night(lake, 2, [segment("v@1", windows=0, failed=True, reason="timeout")])
    night(lake, 3, [segment("v@2")])
    assert [k[0] for k in glob_keys(lake, LEDGER)] == ["v@2", "w"]


def test_a_damaged_file_is_named_and_never_read_as_another(tmp_path) -> None:
    lake = many_commits(tmp_path)
    rows = read_annotations(lake.uri)
    path = Path(lake.files(LEDGER)[0].path)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    names = [
        at
        for name in (b"lease", b"attempt", b"n_windows")
        for at in range(footer, len(whole))
        if whole.startswith(name, at)
    ]
    assert len(names) >= 6
    damaged = [whole[:-9]]
    for at in (*range(4, len(whole), 23), *names):
        damaged.append(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
    told = []
    for data in damaged:
        path.write_bytes(data)
        try:
            assert read_annotations(lake.uri).equals(rows)
        except UserError as error:
            told.append(str(error))
    assert all(f"{path.name} is damaged" in line for line in told)
    assert len(told) > len(damaged) / 2


def test_a_file_that_another_writer_wrote_anew_is_read(tmp_path) -> None:
    lake = many_commits(tmp_path)
    rows = read_annotations(lake.uri)
    for table in TABLES:
        for file in lake.files(table):
            told = pq.read_table(file.path, partitioning=None)
            told = told.append_column("note", pa.nulls(told.num_rows, pa.string()))
            pq.write_table(told.select(told.column_names[::-1]), file.path)
    assert read_annotations(lake.uri).equals(rows)


@pytest.mark.parametrize("command", ["compact", "forget", "publish"])
def test_damage_that_is_met_on_the_way_fails_the_job(tmp_path, capsys, command: str) -> None:
    lake = many_commits(tmp_path / "lake")
    (file, *_) = (f for f in lake.files("tracks"))
    Path(file.path).write_bytes(Path(file.path).read_bytes()[:-9])
    more = {
        "compact": [],
        "forget": ["/v/v0.mp4"],
        "publish": ["--catalog", f"sqlite:///{tmp_path}/c.db"],
    }
    assert main([command, lake.uri, *more[command]]) == 1
    assert f"{Path(file.path).name} is damaged" in capsys.readouterr().err


def test_rows_of_many_small_commits_are_all_joined(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "_SMALL_ONES", 2)
    lake = many_commits(tmp_path)
    before = read_annotations(str(tmp_path)).sort_by("video_id").to_pylist()
    compact(lake, no_fence, 1 << 20)
    assert read_annotations(str(tmp_path)).sort_by("video_id").to_pylist() == before


def test_memory_that_runs_out_makes_no_file_a_damaged_one(tmp_path, monkeypatch) -> None:
    lake = many_commits(tmp_path)

    def read(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read", read)
    with pytest.raises(MemoryError):
        read_annotations(lake.uri)


def test_a_writer_whose_data_was_cleared_away_commits_nothing(tmp_path, monkeypatch) -> None:
    """It slept between the fence and the ledger file, and another run took over meanwhile."""
    lake = lake_at(tmp_path)

    class Sleeps(NoFence):
        def __call__(self) -> None:
            recover(lake, the_next)

    with pytest.raises(LeaseLost):
        commit_segments(lake, [segment("a")], RUN, Sleeps())
    assert glob_keys(lake) == glob_keys(lake, LEDGER) == []
    commit_segments(lake, [segment("a")], RUN, the_next)
    assert read_annotations(str(tmp_path)).num_rows == 2


def test_work_under_way_is_left_alone_by_a_run_that_has_lost_the_output(tmp_path) -> None:
    lake = lake_at(tmp_path)

    class OldRunWakesUp(NoFence):
        def __call__(self) -> None:
            recover(lake, no_fence)

    commit_segments(lake, [segment("a")], RUN, OldRunWakesUp(number=2))
    assert read_annotations(str(tmp_path)).num_rows == 2


def test_rows_whose_data_is_gone_are_taken_out_to_be_done_again(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a"), segment("n", windows=0)], RUN, no_fence)
    (annotations,) = lake.files("annotations")
    Path(annotations.path).unlink()
    with pytest.raises(FilesChanged):
        read_annotations(str(tmp_path))
    recover(lake, the_next)
    assert set(video_states(ledger(lake).live)) == {"n"}
    assert read_annotations(str(tmp_path)).num_rows == 0
    assert glob_keys(lake, "tracks") == []


def test_a_listing_that_lags_takes_no_row_for_lost(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a")], RUN, no_fence)
    listed = Lake.files
    monkeypatch.setattr(
        Lake, "files", lambda self, table: listed(self, table) if table == LEDGER else []
    )
    recover(lake, the_next)
    monkeypatch.undo()
    assert read_annotations(str(tmp_path)).num_rows == 2


def test_what_is_too_much_to_hold_is_compacted_in_parts(tmp_path, monkeypatch) -> None:
    lake = many_commits(tmp_path)
    sizes = [lake.read_table(f).nbytes for table in TABLES for f in lake.files(table)]
    monkeypatch.setattr(compaction, "_MERGED_BYTES", sum(sizes) // 3)
    compact(lake, the_next, 1 << 30)
    left = len(lake.files(LEDGER))
    assert 2 <= left <= 4
    compact(lake, the_next, 1 << 30)
    assert len(lake.files(LEDGER)) <= left
    assert len(glob_keys(lake)) == len(set(glob_keys(lake))) == 11


def test_partitions_are_merged_each_by_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("emolake.pipeline.storage.shards.IN_MEMORY_ROWS", 1)
    lake = lake_at(tmp_path)
    for k in range(12):
        stamp = RunStamp("r", f"2026-01-0{1 + k % 3}", "c0ffee")
        commit_segments(lake, [segment(f"v{k}", windows=1)], stamp, no_fence)
    compact(lake, the_next, 1 << 20)
    for table in TABLES:
        assert [file.date[-1] for file in lake.files(table)] == ["1", "2", "3"]
        assert [k[0] for k in glob_keys(lake, table)] == sorted(f"v{k}" for k in range(12))
    for file in lake.files(LEDGER):
        videos = lake.read_table(file)["video_id"].to_pylist()
        assert {1 + int(video[1:]) % 3 for video in videos} == {int(file.date[-1])}


def test_compaction_asks_three_requests_a_commit(monkeypatch, s3) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    lake = Lake.at(f"s3://{s3.bucket}/compacted", Storage())
    taken = []
    for count in (10, 40):
        for k in range(count):
            commit_segments(lake, [segment(f"{count}-{k}")], RUN, no_fence)
        before = ours()
        compact(lake, the_next, 1 << 30)
        taken.append(ours().since(before)["requests"])
    assert taken[1] - taken[0] <= 3 * 31
    assert [len(lake.files(table)) for table in TABLES] == [1, 1, 1]


def test_each_track_is_looked_at_once(monkeypatch) -> None:
    row = segment("a")
    calls = []
    original = commit.first_model
    monkeypatch.setattr(
        commit, "first_model", lambda rows: calls.append(len(rows)) or original(rows)
    )
    many = [row["tracks"][0] | {"track_id": k} for k in range(50)]
    told = [row["annotations"][0] | {"track_id": k} for k in range(50)]
    assert len(commit._tracks([row | {"tracks": many, "annotations": told}], RUN)) == 50
    assert len(calls) == 1


def test_scores_of_a_track_weigh_windows_by_their_length() -> None:
    long = {"start_s": 0.0, "end_s": 3.0, "scores": [("fear", 1.0), ("anger", 0.0)]}
    short = {"start_s": 3.0, "end_s": 4.0, "scores": [("fear", 0.0), ("anger", 1.0)]}
    assert time_weighted_scores([long, short]) == pytest.approx({"fear": 0.75, "anger": 0.25})


def test_what_is_said_without_a_face_is_whole(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("said", tracks=[])], RUN, no_fence)
    recover(lake, no_fence, own=True)
    assert len(glob_keys(lake)) == 2, "windows of no track need no file of tracks"
    assert read_annotations(lake.uri).num_rows == 2
    assert read_tracks(lake.uri).num_rows == 0
    assert [v.state for v in video_states(newest_versions(ledger(lake).rows)).values()] == [
        "annotated"
    ]


def test_a_stream_is_what_was_read_whole_and_says_where_files_went(tmp_path) -> None:
    lake = lake_at(tmp_path)
    for video in "abc":
        commit_segments(lake, [segment(video)], RUN, no_fence)
    whole = read_annotations(lake.uri)
    assert stream(lake.uri).read_all().equals(whole)
    chosen = stream(lake.uri, columns=["emotion", "corpus"])
    assert [batch.num_rows for batch in chosen] == [2, 2, 2], "file by file"
    assert chosen.schema.names == ["emotion", "corpus"]
    assert duckdb.from_arrow(stream(lake.uri)).count("*").fetchall() == [(6,)]
    with pytest.raises(UserError, match="no column 'mood'"):
        stream(lake.uri, columns=["mood"])
    late = stream(lake.uri)
    compact(lake, the_next, 1 << 20)
    with pytest.raises(FilesChanged):
        late.read_all()


def test_a_ledger_file_whose_place_was_taken_is_not_read_as_one_without_rows(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a")], RUN, no_fence)
    before = Snapshot.of(lake)
    (file,) = lake.files(LEDGER)
    lake.write_table(file.path, VIDEOS.empty_table())
    with pytest.raises(FilesChanged):
        list(before.tables(LEDGER))


def test_a_rewriting_takes_no_place_of_what_it_has_taken_away_itself(tmp_path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a"), segment("b")], RUN, no_fence)
    begin(lake, {"/v/a.mp4"}, the_next)
    recover(lake, the_next)
    assert len(files(lake)) == 3


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path, monkeypatch
) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a")], RUN, no_fence)
    scandir = os.scandir

    def denied(path: str) -> object:
        if "date=" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError):
        lake.files("annotations")
