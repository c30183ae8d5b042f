"""What a person reads while a run goes on."""

import io
import time

import pyarrow as pa
import pytest
from rich.console import Console

from emolake.jobs import progress
from emolake.jobs.progress import Expected, Progress, Tally
from emolake.pipeline.corpus.planning import known_sizes
from emolake.pipeline.lake.schema import VIDEO_ROW


def todo(*sizes: int | None, segments: list[int] | None = None, of: int | None = None) -> pa.Table:
    row = {"video_id": "v", "uri": "v", "corpus": "c", "attempt": 1}
    more = {"segments": segments, "n_segments": of}
    return pa.Table.from_pylist([row | more | {"size": size} for size in sizes], VIDEO_ROW)


def committed(video: int, size: int | None, n_segments: int = 1) -> dict:
    numbers = (
        "bytes_read",
        "bytes_written",
        "requests",
        "n_tracks",
        "n_dropped_tracks",
        "n_windows",
    )
    seconds = ("video_seconds", "face_seconds", "annotate_seconds", "write_seconds")
    row = {"video_id": str(video), "size": size, "n_segments": n_segments, "state": "annotated"}
    return row | dict.fromkeys((*numbers, *seconds), 0) | {"spent": None}


def test_what_is_done_goes_by_bytes_and_by_videos_where_a_size_is_unknown() -> None:
    tally = Tally()
    tally.add(committed(0, 900, n_segments=2))
    assert Expected([todo(900, 100)]).done(tally) == pytest.approx(0.45)
    assert Expected([todo(900), todo(None, None, None)]).done(tally) == pytest.approx(0.125)
    assert Expected([todo(900, 100, segments=[1], of=2)]).done(tally) == pytest.approx(0.9)
    assert Expected().done(Tally()) == 0


def test_few_small_videos_are_not_worth_an_actor_each() -> None:
    sized = {(4, 1): 1, (300, 1): 19, (2, 100_000_000): 26, (0, 0): 0}
    for (videos, size), segments in sized.items():
        assert Expected([todo(*[size] * videos)] if videos else []).segments == segments


def test_an_empty_object_is_one_whose_server_told_no_length() -> None:
    films = [{"uri": uri} for uri in ("https://h/a.mp4", "/v/empty.mp4", "/v/a.mp4")]
    rows = todo(0, 0, 5).to_pylist()
    part = pa.Table.from_pylist([a | b for a, b in zip(rows, films, strict=True)], VIDEO_ROW)
    assert known_sizes(part).to_pylist() == [None, 0, 5]
    assert Expected([part]).segments is None
    assert Expected([part.slice(1)]).segments == 1


def test_what_the_ledger_alone_tells_has_no_part_in_what_it_took() -> None:
    tally = Tally()
    for video in range(4):
        tally.add(committed(video, 1) | {"n_windows": 3, "face_seconds": 10.0})
    told = {"n_tracks": [1] * 8, "n_windows": [3] * 8, "state": ["annotated"] * 8}
    for _ in range(2):  # it may break twice
        tally.told_by([pa.table(told)])
    assert (tally.segments, tally.windows, tally.states["annotated"]) == (8, 24, 8)
    assert tally.untold == {"segments": 4, "windows": 12}
    faces = tally.stages()["faces"]
    assert (faces["rows"], faces["rows_per_busy_second"]) == (4, 0.1)


def test_what_may_end_in_a_mistake_is_not_told_soon(monkeypatch, capfd) -> None:
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.02)
    with Progress(quiet=False) as shown:
        shown.waits_for("listing", soon=False)
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_the_time_left_holds_from_the_tenth_percent_on(monkeypatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    sizes = [5_000_000] * 20 + [500_000, 30_000] * 150  # the long ones first
    shown = Progress(quiet=True)
    shown.expected, shown.tally.started = Expected([todo(*sizes)]), clock[0]
    clock[0] += 25  # the start, which the rest does not take again
    ends = clock[0] + sum(sizes) / 1e6
    for video, size in enumerate(sizes):
        clock[0] += size / 1e6
        shown.add(committed(video, size) | {"face_seconds": size / 1e6})
        left = shown.seconds_left
        if shown.expected.done(shown.tally) >= 0.1 and left is not None:
            assert left == pytest.approx(ends - clock[0], rel=0.25, abs=1)


def test_whatever_takes_its_time_is_told_by_name(monkeypatch, capfd) -> None:
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.02)
    with Progress(quiet=False) as shown:
        shown.waits_for("starting Ray")
        time.sleep(0.3)
        shown.expected = Expected([todo(1)])
        shown.add(committed(0, 1))
    told = capfd.readouterr().err
    assert told.count("starting Ray") == 1, "once, until it is something else's turn"
    with Progress(quiet=True) as shown:
        shown.waits_for("starting Ray")
        time.sleep(0.1)
    assert capfd.readouterr().err == ""


def test_a_terminal_shows_bars_and_no_markup() -> None:
    shown = Progress(quiet=True)
    shown.expected = Expected([todo(1, 1)])
    shown.add(committed(0, 1))
    console = Console(file=io.StringIO(), markup=False, width=120)
    console.print(shown._table())
    told = console.file.getvalue()
    assert "videos    1/2" in told
    assert "━" * 32 in told
    assert "[" not in told
