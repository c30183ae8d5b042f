"""What people said of windows: nothing is lost, nothing is doubled, whoever saves, merges or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import duckdb
import pytest

from emolake.pipeline.errors import UserError
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.forgetting import Forgotten, begin
from emolake.pipeline.lake.labels import (
    Labels,
    checked,
    erase_labels,
    merge,
    save,
    slot_of,
)
from emolake.pipeline.lake.layout import LABELS, Lake
from emolake.pipeline.lake.recovery import recover
from tests.pipeline.lake.test_lake import (
    RUN,
    NoFence,
    killed_at_step,
    lake_at,
    no_fence,
    segment,
)


def said(video: str = "a", window: int = 0, **more: object) -> dict:
    return {
        "video_id": video, "uri": f"/v/{video.split('@')[0]}.mp4", "segment": 0, "track_id": 0,
        "window": window, "start_s": 2.0 * window, "end_s": 2.0 * window + 2, "kind": "emotion",
        "label": "anger", "reviewer": "ann", "revision": 1, "blind": False, "emotion": "fear",
        "model": "m",
    } | more  # fmt: skip


def say(lake: Lake, video: str = "a", window: int = 0, **more: object) -> dict:
    return save(lake, said(video, window, **more), "c", RUN.date)


def labels_of(lake: Lake) -> list[tuple[str, str | None]]:
    return sorted((row["reviewer"], row["label"]) for row in Labels.of(lake).standing())


def test_two_reviewers_may_disagree_and_the_last_word_of_each_counts(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    say(lake)
    say(lake, label="sadness", revision=2)
    say(lake, reviewer="bo", label="fear")
    say(lake, kind="note", label="a shadow")
    assert labels_of(lake) == [("ann", "a shadow"), ("ann", "sadness"), ("bo", "fear")]
    emotions = [row["label"] for row in Labels.of(lake).standing(["emotion"])]
    assert sorted(emotions) == ["fear", "sadness"]
    say(lake, label=None, revision=3)
    assert labels_of(lake) == [("ann", "a shadow"), ("bo", "fear")], "taken back"


def test_no_clock_says_which_word_is_the_last(tmp_path: Path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    monkeypatch.setattr("time.time_ns", lambda: 2**60)
    say(lake, label="fear", revision=2)
    monkeypatch.setattr("time.time_ns", lambda: 1)
    say(lake, label="anger", revision=3)
    assert labels_of(lake) == [("ann", "anger")]


def test_of_two_words_at_once_all_readers_choose_the_same(tmp_path: Path) -> None:
    words = [{"label_id": f"{k}", "label": label} for k, label in enumerate(("fear", "anger"))]
    chosen = set()
    for order in permutations(said(**word) for word in words):
        labels = Labels(lake_at(tmp_path))
        assert [labels.add(row) for row in order] == [True, True]
        chosen.add(labels.standing()[0]["label"])
    assert chosen == {"anger"}
    assert labels.next_revision(slot_of(said())) == 2


def test_a_hundred_saved_at_once_are_all_there(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda k: say(lake, window=k), range(100)))
    assert sorted(row["window"] for row in Labels.of(lake).standing()) == list(range(100))


def test_merging_leaves_one_file_a_partition_and_every_row(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a")], RUN, no_fence)
    for window in range(3):
        say(lake, window=window)
    save(lake, said("b"), "other", RUN.date)
    before = Labels.of(lake)
    told = compact(lake, NoFence(number=2), 1 << 20)
    assert (told.files_before, told.files_after) == (7, 5)
    assert Labels.of(lake).rows == before.rows
    assert before.read_on() == [], "what was merged is nothing new"
    found = duckdb.sql(f"select label_id from '{tmp_path}/labels/**/*.parquet'").fetchall()
    assert len(found) == 4


@pytest.mark.parametrize("deaths", range(2))
def test_a_merging_that_is_killed_doubles_nothing(tmp_path: Path, monkeypatch, deaths: int) -> None:
    lake = lake_at(tmp_path)
    for window in range(3):
        say(lake, window=window)
    before = Labels.of(lake).rows
    with killed_at_step(deaths, monkeypatch):
        merge(lake, no_fence)
        pytest.fail("nothing is left to be killed at")
    assert Labels.of(lake).rows == before
    merge(lake, no_fence)
    assert Labels.of(lake).rows == before
    assert len(lake.files(LABELS)) == 1


def test_what_comes_while_others_merge_stays(tmp_path: Path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    say(lake, window=0)
    say(lake, window=1)
    create = Lake.create_table

    def beside(self: Lake, path: str, table: object) -> bool:
        monkeypatch.setattr(Lake, "create_table", create)
        say(lake, window=2)
        return create(self, path, table)

    monkeypatch.setattr(Lake, "create_table", beside)
    merge(lake, no_fence)
    assert sorted(row["window"] for row in Labels.of(lake).standing()) == [0, 1, 2]


def test_a_word_on_a_forgotten_video_is_read_by_nobody_and_erased_by_the_next_run(
    tmp_path: Path, monkeypatch
) -> None:
    lake = lake_at(tmp_path)
    commit_segments(lake, [segment("a"), segment("b")], RUN, no_fence)
    fence = NoFence(number=2)
    begin(lake, {"/v/a.mp4"}, fence)
    assert erase_labels(lake, {"/v/a.mp4"}, fence) == 0
    with pytest.raises(UserError, match="forgotten"):
        say(lake, "a")  # by a view that read the output before
    assert not lake.files(LABELS)
    with monkeypatch.context() as dying:
        dying.setattr(Forgotten, "of", lambda _: 1 / 0)  # before it has looked
        with pytest.raises(ZeroDivisionError):
            say(lake, "a")
    say(lake, "b")
    assert [row["video_id"] for row in Labels.of(lake).standing()] == ["b"]
    recover(lake, NoFence(number=3))
    rows = [row for _, t in lake.read_tables(lake.files(LABELS)) for row in t.to_pylist()]
    assert [row["video_id"] for row in rows] == ["b"]


def test_a_reviewer_killed_while_saving_leaves_a_whole_word_or_none(tmp_path: Path) -> None:
    """A process that says one thing after another is killed, and what it had been told was saved is there."""
    script = (
        "import sys\n"
        "from tests.pipeline.lake.test_labels import say\n"
        "from tests.pipeline.lake.test_lake import lake_at\n"
        "from pathlib import Path\n"
        "lake = lake_at(Path(sys.argv[1]))\n"
        "for window in range(10_000):\n"
        "    say(lake, window=window)\n"
        "    print(window, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout]
    process.wait()
    there = {row["window"] for row in Labels.of(lake_at(tmp_path)).standing()}
    assert set(told) <= there <= {*told, len(told)}
    erase_labels(lake_at(tmp_path), (), no_fence)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("kind", "label", "stored"),
    [
        ("emotion", "Happy", "happiness"),
        ("emotion", "not_a_face", "not a face"),
        ("emotion", None, None),
        ("same person", "0.3", "0.3"),
        ("note", "seen from behind", "seen from behind"),
    ],
)
def test_a_label_is_stored_by_its_canonical_name(
    kind: str, label: str | None, stored: str | None
) -> None:
    assert checked(kind, label) == stored


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("emotion", "hungry"),
        ("emotion", ""),
        ("mood", "anger"),
        ("same person", "3"),
        ("same person", "0.-1"),
        ("note", " "),
        ("note", "x" * 2001),
    ],
)
def test_what_is_no_label_is_refused(kind: str, label: str) -> None:
    with pytest.raises(UserError):
        checked(kind, label)
