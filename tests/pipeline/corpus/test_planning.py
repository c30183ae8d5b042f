"""Planning: what is to be done, whatever the length of the input, and inputs that are none."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from emolake.pipeline.config import Config
from emolake.pipeline.corpus.listing import find_videos
from emolake.pipeline.corpus.planning import Asked, Plan, left_of, make_plan
from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.ledger import ledger_shards
from emolake.pipeline.lake.reading import read_annotations, read_videos
from emolake.pipeline.lake.recovery import recover
from emolake.pipeline.lake.schema import LISTED_ROW
from emolake.pipeline.storage import shards
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.shards import Shards, together
from tests.pipeline.lake.test_lake import NoFence, glob_keys, no_fence, segment

HASH = "c0ffee"
STAMP = RunStamp("run-1", "2026-01-31", HASH)


def listed(rows: list[dict]) -> Shards:
    made = Shards(LISTED_ROW)
    for at in range(0, len(rows), 7):
        made.add(pa.Table.from_pylist(rows[at : at + 7], LISTED_ROW))
    return made


def video(name: str, uri: str | None = None) -> dict:
    return {"video_id": name, "uri": uri or f"/v/{name.split('@')[0]}.mp4", "size": 10}


def test_a_file_that_could_not_be_opened_leaves_all_its_segments(lake: Lake) -> None:
    now = RunStamp("run-2", "2026-01-31", HASH)
    commit_segments(
        lake, [segment("new", failed=True, reason="truncated", windows=0)], now, no_fence
    )
    plan = planned(lake, Asked(retry_failed=True))
    commit_segments(lake, [segment("new", 1, of=4)], now, no_fence)
    left = left_of(plan.todo, ledger_shards(lake), "run-2", 0)
    assert ("new", [0, 2, 3], 2) in told(replace(plan, todo=left))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """a to z done, but of `m` one of two segments; `k` changed since; `q` failed for a while."""
    lake = Lake.at(str(tmp_path / "lake"), Storage())
    rows = [segment(name) for name in "abcdefghij"] + [segment("k@1")]
    rows += [segment("m", 0, of=2), segment("q", failed=True, reason="timeout", windows=0)]
    for row in rows:
        commit_segments(lake, [row], RunStamp("run-1", "2026-01-31", HASH), no_fence)
    return lake


ALL_NEW = Asked()


def planned(lake: Lake, asked: Asked = ALL_NEW) -> Plan:
    rows = [video(name) for name in [*"abcdefghij", "k@2", "m", "q", "new", "a", "a"]]
    return make_plan(listed(rows), ledger_shards(lake), Config(), HASH, asked)


def told(plan: Plan) -> list[tuple]:
    rows = [row for part in plan.todo.parts() for row in part.to_pylist()]
    return [(row["video_id"], row["segments"], row["attempt"]) for row in rows]


def test_what_is_new_changed_unfinished_or_may_pass_is_done(lake: Lake) -> None:
    plan = planned(lake)
    assert told(plan) == [("k@2", None, 1), ("m", [1], 1), ("q", None, 2), ("new", None, 1)]
    assert (plan.total, plan.repeated) == (14, 2)


def test_of_a_plan_that_which_the_run_has_not_committed_is_left(lake: Lake) -> None:
    plan = planned(lake)
    now = RunStamp("run-2", "2026-01-31", HASH)
    rows = [segment("k@2", 1, of=3), segment("m", 1, of=2)]
    commit_segments(lake, [*rows, segment("q", failed=True, reason="timeout")], now, no_fence)
    left = left_of(plan.todo, ledger_shards(lake), "run-2", 0)
    assert told(replace(plan, todo=left)) == [("k@2", [0, 2], 1), ("new", None, 1)]
    (first, new) = [row for part in left.parts() for row in part.to_pylist()]
    assert (first["n_segments"], new["n_segments"]) == (3, None)
    assert told(replace(plan, todo=left_of(plan.todo, ledger_shards(lake), "run-2", 9))) == told(
        plan
    ), "another run had its id"
    everything = planned(lake, Asked(reprocess=True))
    left = left_of(everything.todo, ledger_shards(lake), "run-2", 0)
    assert [row[:2] for row in told(replace(plan, todo=left))] == [
        *((name, None) for name in "abcdefghij"), ("k@2", [0, 2]), ("m", [0]), ("new", None)
    ]  # fmt: skip
    assert plan.why_done == {"changed": 1, "unfinished": 1, "retry": 1, "new": 1}
    assert plan.why_skipped == {"done": 10}


def passing_failure(name: str, index: int = 0, *, of: int = 1) -> dict:
    return segment(name, index, of=of, windows=0, failed=True, reason="storage_error")


def live(lake: Lake) -> list[tuple]:
    rows = read_videos(lake.uri).to_pylist()
    return sorted((row["video_id"], row["segment"], row["state"]) for row in rows)


def test_a_failure_that_may_pass_replaces_nothing_that_is_there(tmp_path: Path) -> None:
    lake, stamp = Lake.at(str(tmp_path), Storage()), RunStamp("run-1", "2026-01-31", HASH)
    for row in (segment("a"), segment("b", 0, of=2), segment("b", 1, of=2)):
        commit_segments(lake, [row], stamp, no_fence)
    again = RunStamp("run-2", "2026-02-01", "other")
    for row in (passing_failure("a"), passing_failure("b")):
        commit_segments(lake, [row], again, NoFence(number=2))
    recover(lake, NoFence(number=3))
    assert live(lake) == [("a", 0, "annotated"), ("b", 0, "annotated"), ("b", 1, "annotated")]
    assert len(glob_keys(lake)) == 6
    rows = [video(name) for name in "ab"]
    plan = make_plan(listed(rows), ledger_shards(lake), Config(), "other")
    assert plan.why_done == {"retry": 2}, "and what failed is done again, under its configuration"
    failed = segment("a", windows=0, failed=True, reason="decode_error")
    commit_segments(lake, [failed], again, NoFence(number=4))
    commit_segments(lake, [segment("b", windows=1)], again, NoFence(number=4))
    recover(lake, NoFence(number=5))
    assert live(lake) == [("a", 0, "failed"), ("b", 0, "annotated")], "what will not pass does"
    assert glob_keys(lake) == [("b", 0, 0)]


def test_a_failure_that_may_pass_takes_nothing_with_it_where_commits_are_merged(
    tmp_path: Path,
) -> None:
    lake = Lake.at(str(tmp_path), Storage())
    commit_segments(lake, [segment("a"), segment("b")], STAMP, no_fence)
    commit_segments(lake, [passing_failure("a"), segment("c")], STAMP, NoFence(number=2))
    commit_segments(lake, [segment("d")], STAMP, NoFence(number=2))
    compact(lake, NoFence(number=3), 1 << 20)
    assert read_annotations(lake.uri).num_rows == 8
    commit_segments(lake, [passing_failure("a")], STAMP, NoFence(number=4))
    recover(lake, NoFence(number=5))
    assert [row[:2] for row in live(lake)] == [(video, 0) for video in "abcd"]
    assert read_annotations(lake.uri).num_rows == len(glob_keys(lake)) == 8


def test_a_version_that_is_not_whole_takes_nothing_with_it_where_commits_are_merged(
    tmp_path: Path,
) -> None:
    lake = Lake.at(str(tmp_path), Storage())
    commit_segments(lake, [segment("a"), segment("b")], STAMP, no_fence)
    commit_segments(lake, [segment("a", 0, of=2, windows=1)], STAMP, NoFence(number=2))
    compact(lake, NoFence(number=3), 1 << 20)
    assert read_annotations(lake.uri).num_rows == 4
    commit_segments(lake, [segment("a", 1, of=2, windows=1)], STAMP, NoFence(number=4))
    recover(lake, NoFence(number=5))
    assert live(lake) == [("a", 0, "annotated"), ("a", 1, "annotated"), ("b", 0, "annotated")]
    assert glob_keys(lake) == [("a", 0, 0), ("a", 1, 0), ("b", 0, 0), ("b", 0, 1)]


def test_a_retry_knows_how_many_segments_there_are(lake: Lake) -> None:
    commit_segments(lake, [segment("t", 0, of=3), segment("t", 2, of=3)], STAMP, no_fence)
    commit_segments(lake, [passing_failure("t", 1, of=3)], STAMP, no_fence)
    plan = make_plan(listed([video("t")]), ledger_shards(lake), Config(), HASH)
    ((row,),) = [part.to_pylist() for part in plan.todo.parts()]
    assert (row["segments"], row["n_segments"]) == ([1], 3)


def test_what_cannot_be_reached_keeps_what_is_known_of_it(lake: Lake) -> None:
    gone = video("-", "/v/a.mp4") | {"size": None, "missing": "storage_error"}
    never_seen = video("=", "/v/new.mp4") | {"size": None, "missing": "not_found"}
    plan = make_plan(listed([gone, never_seen]), ledger_shards(lake), Config(), HASH)
    assert told(plan) == [("=", None, 1)]
    assert plan.why_skipped == {"unreachable": 1}


def test_a_plan_in_parts_on_disk_is_the_same(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [planned(lake), planned(lake, Asked(reprocess=True))]
    monkeypatch.setattr(shards, "IN_MEMORY_ROWS", 5)
    for one, parted in zip(
        whole, [planned(lake), planned(lake, Asked(reprocess=True))], strict=True
    ):
        assert ledger_shards(lake).spilled
        assert sorted(told(parted), key=str) == sorted(told(one), key=str)
        assert (parted.total, parted.repeated) == (one.total, one.repeated)
        assert (parted.why_done, parted.why_skipped) == (one.why_done, one.why_skipped)
    commit_segments(lake, [segment("b")], RunStamp("run-2", "2026-02-01", HASH), no_fence)
    recover(lake, no_fence)
    other = make_plan(listed([video("b")]), ledger_shards(lake), Config(), HASH)
    assert not other.todo.num_rows
    with pytest.raises(UserError, match="another model or configuration"):
        make_plan(listed([video("b")]), ledger_shards(lake), Config(), "else")


def test_parts_hold_every_row_once_and_a_uri_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [video(f"{k}", f"s3://b/{k % 40}.mp4") for k in range(100)]
    few = listed(rows[:3])
    monkeypatch.setattr(shards, "IN_MEMORY_ROWS", 20)
    many = listed(rows)
    assert (few.spilled, many.spilled) == (False, True)
    seen: list[str] = []
    for one, other in together(many, few):
        uris = set(one["uri"].to_pylist())
        assert not uris & set(seen)
        assert set(other["uri"].to_pylist()) <= uris
        order = [int(name) for name in one["video_id"].to_pylist()]
        assert order == sorted(order), "rows keep their order within a part"
        seen += uris
    assert len(seen) == 40
    assert sum(part.num_rows for part in many.parts()) == 100


def test_a_long_input_takes_little_memory(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak() -> int:
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        most = 0
        videos = Shards(LISTED_ROW)
        for at in range(0, 20_000, 1000):
            rows = [video(f"{k:06d}") for k in range(at, at + 1000)]
            videos.add(pa.Table.from_pylist(rows, LISTED_ROW))
            most = max(most, pa.total_allocated_bytes() - before)
        assert make_plan(videos, ledger_shards(lake), Config(), HASH).todo.num_rows == 20_000
        told = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return told + most

    whole = peak()
    monkeypatch.setattr(shards, "IN_MEMORY_ROWS", 1000)
    assert peak() < whole / 5


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_manifest_that_tells_size_and_etag_is_believed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    table = pa.table(
        {"uri": ["s3://b/x.mp4", "s3://b/y.mp4"], "size": [7, 8], "etag": ['"e1"', "e2"]}
        | {"age": ["20-29", None], "other": [1, 2]}
    )
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n\n" for row in table.to_pylist()))
    (found,) = find_videos([str(path)], Storage({"endpoint_url": "http://127.0.0.1:1"}))
    rows = found.to_pylist()
    assert [(r["uri"], r["size"], r["age"], r["missing"]) for r in rows] == [
        ("s3://b/x.mp4", 7, "20-29", None),
        ("s3://b/y.mp4", 8, None, None),
    ]


def test_a_video_is_read_by_whichever_mention_can_be_read(lake: Lake) -> None:
    expired = video("new") | {"missing": "storage_error", "signed_uri": "https://h/?old"}
    fresh = video("new") | {"signed_uri": "https://h/?new"}
    for rows in ([expired, fresh], [fresh, expired]):
        plan = make_plan(listed(rows), ledger_shards(lake), Config(), HASH)
        (todo,) = [row for part in plan.todo.parts() for row in part.to_pylist()]
        assert (todo["missing"], todo["signed_uri"]) == (None, "https://h/?new")
        assert (plan.total, plan.repeated) == (1, 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "path\nx.mp4\n", "no column 'uri'; its columns: path"),
        ("m.jsonl", '{"uri": "x"}\n{"uri": null}\n', "row 2 has no uri"),
        ("m.jsonl", '{"uri": \n', "malformed"),
        ("m.jsonl", "[1]\n", "line 1 is no object"),
        ("m.csv", "uri,size\nx.mp4,many\n", "malformed"),
        ("m.parquet", "PAR1", "malformed"),
    ],
)
def test_a_manifest_that_is_none_is_told_in_a_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        list(find_videos([str(tmp_path / name)], Storage()))
