import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from emolake.pipeline.errors import UserError
from emolake.pipeline.lake import lease
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.lease import Lease, LeaseLost
from emolake.pipeline.storage import files
from tests.pipeline.lake.test_lake import RUN, lake_at, segment


def test_the_second_writer_is_told_who_holds_the_output(tmp_path) -> None:
    lake = lake_at(tmp_path)
    first = Lease.acquire(lake, "nightly")
    with pytest.raises(UserError, match=r"in use by run nightly on .* since 20"):
        Lease.acquire(lake, "other")
    first.release()
    Lease.acquire(lake, "other").release()


def test_a_holder_that_slept_too_long_is_fenced_off(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    monkeypatch.setattr(Lease, "_beat", lambda self: None)  # a paused process does not beat
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    asleep = Lease.acquire(lake, "asleep", ttl_s=0.05)
    asleep.fence()
    monkeypatch.undo()
    awake = Lease.acquire(lake, "awake")
    with pytest.raises(LeaseLost):
        asleep.fence()
    with pytest.raises(LeaseLost):
        commit_segments(lake, [segment("a")], RUN, asleep.fence)
    awake.fence()
    asleep.release()
    awake.fence()


def test_a_lease_renewed_fences_off_what_began_under_it(tmp_path) -> None:
    lake = lake_at(tmp_path)
    mine = Lease.acquire(lake, "mine")
    before = mine.fence
    mine.renew()
    with pytest.raises(LeaseLost):
        commit_segments(lake, [segment("a")], RUN, before)
    commit_segments(lake, [segment("a")], RUN, mine.fence)
    with pytest.raises(UserError, match="in use by run mine"):
        Lease.acquire(lake, "other")
    mine.release()
    other = Lease.acquire(lake, "other")
    with pytest.raises(LeaseLost):
        mine.renew()
    other.fence()
    other.release()


def test_who_is_interrupted_while_it_renews_gives_all_back(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    mine = Lease.acquire(lake, "mine")

    def interrupted(*given: object) -> bool:
        assert files.create_exclusively(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(lease, "create_exclusively", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine.renew()
    monkeypatch.undo()
    mine.release()
    Lease.acquire(lake, "other", patient=False).release()
    assert len(list((tmp_path / "lake" / "_lease").glob("*"))) <= 1


def test_a_holder_elsewhere_is_looked_at_and_refused_as_soon_as_it_beats(
    tmp_path, monkeypatch
) -> None:
    lake = lake_at(tmp_path)
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    there = Lease.acquire(lake, "there", ttl_s=2.0)
    monkeypatch.undo()
    told: list[str] = []
    with pytest.raises(UserError, match="in use by run there"):
        Lease.acquire(lake, "here", say=told.append)
    assert "looking for 2 s" in told[0]
    with pytest.raises(UserError, match="in use by run there"):
        Lease.acquire(lake, "here", patient=False)
    there.release()
    Lease.acquire(lake, "here").release()


def test_a_holder_elsewhere_that_gives_it_back_meanwhile_is_followed(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    monkeypatch.setattr(Lease, "_beat", lambda self: None)
    there = Lease.acquire(lake, "there", ttl_s=20.0)
    monkeypatch.undo()
    threading.Timer(0.5, there.release).start()
    started = time.monotonic()
    Lease.acquire(lake, "here").release()
    assert time.monotonic() - started < 15


def test_the_same_host_name_in_another_pid_namespace_is_another_machine(
    tmp_path, monkeypatch
) -> None:
    """Containers share the host's name where they share its network, and number processes anew."""
    lake = lake_at(tmp_path)
    mine = lease._machine()
    monkeypatch.setattr(lease, "_machine", lambda: mine + "0")
    monkeypatch.setattr(lease.os, "getpid", lambda: 2**22 + 1)  # no process has this number here
    inside = Lease.acquire(lake, "inside", ttl_s=1.0)
    monkeypatch.undo()
    with pytest.raises(UserError, match="in use by run inside"):
        Lease.acquire(lake, "outside")
    inside.release()


def _takes_and_dies(path: str) -> None:
    Lease.acquire(lake_at(Path(path)), "died")
    os._exit(1)


def test_a_holder_whose_process_is_gone_is_followed_at_once(tmp_path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_takes_and_dies, args=(str(tmp_path),)
    )
    process.start()
    process.join()
    told: list[str] = []
    Lease.acquire(lake_at(tmp_path), "next", say=told.append).release()
    assert not told


def test_another_process_that_got_the_same_number_is_told_apart(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    monkeypatch.setattr(lease, "_started", lambda pid: 12345)
    Lease.acquire(lake, "before")
    monkeypatch.undo()
    Lease.acquire(lake, "after").release()


def test_a_lease_is_never_seen_half_written(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "link", dies)
    with pytest.raises(KeyboardInterrupt):
        Lease.acquire(lake, "dies")
    monkeypatch.undo()
    assert not list(tmp_path.glob("_lease/[0-9]*"))
    Lease.acquire(lake, "lives").release()


def test_a_lease_that_cannot_be_read_is_no_free_one(tmp_path) -> None:
    lake = lake_at(tmp_path)
    (tmp_path / "_lease").mkdir()
    (tmp_path / "_lease" / "000000007.json").write_text("{")
    with pytest.raises(UserError, match="in use by another run"):
        Lease.acquire(lake, "second", patient=False)


def test_a_store_without_conditional_creates_is_refused() -> None:
    class Careless(MemoryFileSystem):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
            super().pipe_file(path, value, mode="overwrite")

    lake = Lake("memory://careless", Careless(skip_instance_cache=True), "/careless")
    with pytest.raises(UserError, match="writes over what is there"):
        Lease.acquire(lake, "run")


def test_who_slept_until_its_number_was_cleared_away_takes_nothing(tmp_path, monkeypatch) -> None:
    lake = lake_at(tmp_path)
    current = lease._current
    slept: list[bool] = []

    def sleeps(at):
        told = current(at)
        if not slept:
            slept.append(True)
            for k in range(10):
                Lease.acquire(at, f"run-{k}").release()
        return told

    monkeypatch.setattr(lease, "_current", sleeps)
    with pytest.raises(UserError, match="was taken by another run just now"):
        Lease.acquire(lake, "sleeper")
