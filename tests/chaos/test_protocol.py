"""The protocol of the lake under every adversity: drivers with their write tasks, compactors, forgetters and
readers on one store, over the real code, stopped, killed and misled between any two requests.

A lease may be taken over at any moment, whether its holder lives or not, and clocks say anything: what holds
here rests on neither. Plays are chosen as probabilistic concurrency testing does (Burckhardt et al. 2010):
whoever has the highest priority runs, until at some request it falls behind all others.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emolake.pipeline.corpus.planning import left_of
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.lake import commit, layout, lease, order
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.forgetting import Forgotten, Record, begin, finish
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, DataFile
from emolake.pipeline.lake.lease import Fence, Lease
from emolake.pipeline.lake.ledger import ledger_of, newest_versions
from emolake.pipeline.lake.reading import FilesChanged, live_rows
from emolake.pipeline.lake.recovery import erase, recover, tidy
from emolake.pipeline.lake.schema import VIDEO_ROW
from emolake.pipeline.storage.files import exists
from emolake.pipeline.storage.shards import Shards
from tests.chaos.conftest import Amount
from tests.chaos.steps import Actor, Killed, Store
from tests.pipeline.lake.test_lake import segment

FORGETTABLE = ("a", "s")
VIDEOS = ("a", "b", "n", "s")  # n shows no face, s has windows of what is said and no track
Key = tuple[str, int, int]
"""video@version, segment, of how many."""


class AtOnce:
    """A pool whose work is done when it is handed in: the schedule alone decides what comes first."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work, *arguments) -> Future:
        future: Future = Future()
        future.set_result(work(*arguments))
        return future


def mislead(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Clocks and leases that nobody can rely on."""
    machines, moods = itertools.count(), random.Random(seed)

    def days() -> float:
        return moods.choice((0.0, 11.0, -11.0, 0.3, -0.3))

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:
            return datetime(2026, 1, 31, tzinfo=UTC) + timedelta(days=days())

    monkeypatch.setattr(commit, "datetime", Clock)
    monkeypatch.setattr(order.time, "time_ns", lambda: int((20_000 + days()) * 86_400 * 10**9))
    monkeypatch.setattr(
        lease, "_machine", lambda: str(next(machines))
    )  # nobody sees another's process
    monkeypatch.setattr(Lease, "_beat", lambda self: None)
    monkeypatch.setattr(lease, "TTL_S", 0.0)
    # `forget` leaves it at its default, and a play would wait a minute for a holder that was killed.
    monkeypatch.setitem(Lease.acquire.__func__.__kwdefaults__, "ttl_s", 0.0)
    monkeypatch.setattr(layout, "ThreadPoolExecutor", AtOnce)
    _read_once(monkeypatch)


def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which bytes an actor sees is the play's; that equal bytes are equal tables is Parquet's."""
    decoded, known = layout._decoded, {}

    def remembered(file: DataFile, data: bytes, columns: list[str] | None) -> pa.Table:
        key = file.table, data, None if columns is None else tuple(columns)
        if key not in known:
            known[key] = decoded(file, data, columns)
        return known[key]

    monkeypatch.setattr(layout, "_decoded", remembered)


class Play:
    """One interleaving, chosen by its seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = Store()
        self.actors: list[Actor] = []
        self.priority: dict[Actor, float] = {}
        self.names = itertools.count()
        self.ever_seen: dict[str, set[str]] = {LEDGER: set(), "annotations": set()}
        self.failures = self.random.choice(
            (0.0, 0.1, 0.5)
        )  # share of segments that fail for a reason that may pass
        self.versions = dict.fromkeys(VIDEOS, 0)
        """Of the objects: each has other segments than the one before."""
        self.changes = self.random.choice((0.0, 0.35))
        self.newest: dict[tuple[str, int, int], int] = {}
        self.whole: dict[str, int] = {}
        self.to_forget: set[str] = set()
        self.moods = random.Random(f"breaks {seed}")
        self.breaks = 0.4 if seed % 5 == 0 else 0.0
        """How often a driver's stages break, as by a device, and are started anew for what is left."""
        self.fails_for_good = seed % 5 == 0
        self.failed_for_good: set[str] = set()
        self.last_writers: dict[str, list[Actor]] = {}
        self._checked: set[str] = set()
        self._told: tuple[dict[str, bytes], list[dict]] = ({}, [])
        self._parsed: dict[bytes, pa.Table] = {}

    def __call__(self) -> None:
        steps = self.random.randint(40, 250)
        falls = self.random.choice((0.01, 0.04, 0.15))
        kills, lies = self.random.choice(((0, 0), (0.01, 0.01), (0.05, 0.02)))
        for _ in range(steps):
            self.maybe_start()
            actor = max(self.living, key=self.priority.__getitem__)
            chance = self.random.random()
            if chance < kills:
                actor.kill()
            else:
                actor.lies = chance < kills + lies
                actor.advance()
            if self.random.random() < falls:
                self.priority[actor] = min(self.priority.values()) - 1
            self.check()
        self.end()

    def maybe_start(self) -> None:
        kinds = Counter(actor.name.partition("-")[0] for actor in self.living)
        wanted = [
            (kinds["run"] < 2, lambda: self.driver(self.random.random() < 0.3)),
            (kinds["compact"] < 1, self.compactor),
            (kinds["forget"] < 1 and self.random.random() < 0.3, self.forgetter),
            (kinds["read"] < 1, self.reader),
        ]
        for may, work in wanted:
            if may and (not self.living or self.random.random() < 0.1):
                self.start(work())

    # The processes

    def driver(self, reprocess: bool):
        name = f"run-{next(self.names)}"

        def work(me: Actor) -> None:
            held = Lease.acquire(me.lake, name, ttl_s=0.0)
            ended = False
            try:
                ledger = recover(me.lake, held.fence)
                known = [row for part in ledger.parts() for row in newest(part)]
                done = {key_of(row) for row in known if row["state"] != "failed"}
                if self.random.random() < self.changes:
                    self.versions[self.random.choice(VIDEOS)] += 1
                again = self.random.sample(VIDEOS, 2) if reprocess else ()
                forgotten = Forgotten.of(me.lake)
                todo = [
                    key
                    for video in VIDEOS
                    if uri(video) not in forgotten
                    for key in self.segments_of(video)
                    if key not in done or video in again
                ]
                first, plan = held.number, planned(todo)
                while todo and self.stages_broke(me, held.fence, name, todo):
                    held.renew()
                    todo = keys_of(left_of(plan, recover(me.lake, held.fence), name, first))
                ledger = recover(me.lake, held.fence, own=True)
                left = [
                    key
                    for key in keys_of(left_of(plan, ledger, name, first))
                    if key[0].partition("@")[0] not in self.to_forget
                ]
                whole = all(writer.error is None for writer in self.last_writers.get(name, ()))
                assert not (left and whole and self.rules(held)), f"{name} ended without {left}"
                ended = True
            finally:
                held.release()
                if not ended:
                    tidy(me.lake, name)

        work.name = name
        return work

    def rules(self, held: Lease) -> bool:
        leases = [path for path in self.store.objects if path.startswith("lake/_lease/")]
        return held.number == max(int(path.rpartition("/")[2].partition(".")[0]) for path in leases)

    def stages_broke(self, me: Actor, fence: Fence, run: str, todo: list[Key]) -> bool:
        """Whether they did, before their writers had done all; those may still be at it."""
        self.random.shuffle(todo)
        writers = self.last_writers[run] = []
        while todo:
            some = [todo.pop() for _ in range(self.random.randint(1, len(todo)))]
            for _ in range(self.random.choice((1, 1, 2))):  # Ray may run a task twice
                writers.append(self.start(self.writer(fence, run, some)))
        breaks = self.moods.random() < self.breaks
        while not all(writer.done for writer in writers):
            if breaks and self.moods.random() < 0.2:
                return True
            self.priority[me] = min(self.priority.values()) - 1
            exists(me.lake.fs, "wait")
        return False

    def segments_of(self, video: str) -> list[Key]:
        version = self.versions[video]
        of = 1 + version % 2
        return [(f"{video}@{version}", index, of) for index in range(of)]

    def writer(self, fence: Fence, run: str, keys: list[Key]):
        def work(me: Actor) -> None:
            commit_segments(
                me.lake,
                [
                    segment(video, index, of=of, windows=0, failed=True, reason=self.reason(video))
                    if self.random.random() < self.failures
                    else segment(video, index, of=of, windows=0 if video[0] == "n" else 1)
                    | ({"tracks": []} if video[0] == "s" else {})
                    for video, index, of in keys
                ],
                RunStamp(run, "2026-01-31", "c"),
                Fence(me.lake, fence.number),
            )

        work.name = f"write-{run}"
        return work

    def reason(self, video: str) -> str:
        if not self.fails_for_good or self.moods.random() < 0.5:
            return "timeout"
        self.failed_for_good.add(video[0])
        return "not_a_video"

    def compactor(self):
        def work(me: Actor) -> None:
            held = Lease.acquire(me.lake, "compact", ttl_s=0.0)
            try:
                compact(me.lake, held.fence, 1 << 20)
            finally:
                held.release()

        work.name = "compact"
        return work

    def forgetter(self):
        video = self.random.choice(FORGETTABLE)

        def work(me: Actor) -> None:
            held = Lease.acquire(me.lake, "forget", ttl_s=0.0)
            try:
                self.to_forget.add(video)
                record = begin(me.lake, {uri(video)}, held.fence)
                recover(me.lake, held.fence, forgets=False)
                finish(me.lake, record, erase(me.lake, held.fence, {uri(video)}))
            finally:
                held.release()

        work.name = "forget"
        return work

    def reader(self):
        known = {table: set(seen) for table, seen in self.ever_seen.items()}

        def work(me: Actor) -> None:
            for table in known:
                rows = live_rows(me.lake, table)
                columns = ["video_id", "segment", *([] if table == LEDGER else ["window"])]
                seen = Counter(zip(*(rows[name].to_pylist() for name in columns), strict=True))
                assert not seen or max(seen.values()) == 1, f"{table}: doubled: {seen}"
                versions = {key[0] for key in seen}
                there = {video[0] for video in versions}
                assert len(versions) == len(there), f"{table}: two versions: {versions}"
                wanted = known[table] - self.to_forget
                if table != LEDGER:
                    wanted -= self.failed_for_good
                assert wanted <= there, f"{table}: lost {wanted - there}"
                self.ever_seen[table] |= there

        work.name = "read"
        return work

    def start(self, work) -> Actor:
        actor = Actor(self.store, work)
        actor.name = work.name
        self.actors.append(actor)
        self.priority[actor] = self.random.random()
        return actor

    def writers_of(self, run: str) -> list[Actor]:
        return [actor for actor in self.actors if actor.name == f"write-{run}"]

    @property
    def living(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.done]

    def check(self) -> None:
        allowed = (Killed, lease.LeaseLost, UserError, JobFailed, FilesChanged, TimeoutError)
        for actor in self.actors:
            if actor.error is not None and not isinstance(actor.error, allowed):
                raise actor.error
        if self.store.objects.keys() == self._checked:
            return
        self._checked = set(self.store.objects)
        for row in self.ledger():
            video, _, version = row["video_id"].partition("@")
            if row["standing"] == "stale" or video in self.to_forget:
                continue
            if row["standing"] == "live":
                key = key_of(row)
                before = self.newest.get(key, 0)
                assert row["lease"] >= before, f"{key}: older than was to be seen before"
                self.newest[key] = row["lease"]
                if row["state"] != "failed" and row["n_segments"] == 1:
                    assert int(version) >= self.whole.get(video, 0), f"{key}: an older version"
                    self.whole[video] = int(version)
            for table, n in (("annotations", row["n_windows"]), ("tracks", row["n_tracks"])):
                if n:
                    held = self.rows(table, row["commit_id"])
                    assert row["video_id"] in held, f"{row['commit_id']} has no {table}"

    def ledger(self) -> list[dict]:
        files = {p: d for p, d in self.store.objects.items() if p.startswith("lake/videos/")}
        if files != self._told[0]:
            parts = [self.table(data) for data in files.values()]
            rows = ledger_of(pa.concat_tables(parts)).rows.to_pylist() if parts else []
            self._told = (files, rows)
        return self._told[1]

    def rows(self, table: str, commit_id: str) -> list[str]:
        path = f"lake/{table}/corpus=c/date=2026-01-31/{commit_id}.parquet"
        data = self.store.objects.get(path)
        return self.table(data)["video_id"].to_pylist() if data else []

    def is_forgotten(self, video: str) -> bool:
        """Whether its forgetter came so far as to say so; else it never began."""
        records = [d for p, d in self.store.objects.items() if p.startswith("lake/_forgotten/")]
        return uri(video) in Forgotten([Record.of(data) for data in records])

    def table(self, data: bytes) -> pa.Table:
        if data not in self._parsed:
            self._parsed[data] = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        return self._parsed[data]

    def end(self) -> None:
        """Whatever has happened: sleepers wake up at last, and a run repairs it all."""
        for actor in self.living:
            if self.random.random() < 0.7:
                self.finish(actor)
        for actor in self.living:
            actor.kill()
        self.check()
        self.failures = self.changes = self.breaks = 0.0
        last = self.start(self.driver(reprocess=False))
        self.finish(last)
        assert last.error is None, repr(last.error)
        found = {
            table: sorted(
                video
                for path in self.store.objects
                if path.startswith(f"lake/{table}/")
                for video in self.rows(table, path.rpartition("/")[2].removesuffix(".parquet"))
            )
            for table in (*DATA_TABLES, LEDGER)
        }
        forgotten = {video for video in self.to_forget if self.is_forgotten(video)}
        expected = {"annotations": "abs", "tracks": "ab", LEDGER: "abns"}
        assert found == {
            table: [
                key[0]
                for video in videos
                if video not in forgotten
                for key in self.segments_of(video)
            ]
            for table, videos in expected.items()
        }
        reader = self.start(self.reader())
        self.finish(reader)
        assert reader.error is None, repr(reader.error)

    def finish(self, actor: Actor) -> None:
        for _ in range(3000):
            if actor.done:
                return
            actor.advance()
            for writer in self.writers_of(actor.name.removeprefix("write-")):
                writer.advance()
            self.check()
        raise AssertionError(f"{actor.name} does not end")


def planned(todo: list[Key]) -> Shards:
    """The segments as a run's plan has them."""
    of_video: dict[tuple[str, int], list[int]] = {}
    for video, segment_number, of in todo:
        of_video.setdefault((video, of), []).append(segment_number)
    rows = [
        dict.fromkeys(VIDEO_ROW.names)
        | {"video_id": video, "uri": uri(video.partition("@")[0]), "corpus": "c", "attempt": 1}
        | {"segments": None if len(wanted) == of else wanted, "n_segments": of}
        for (video, of), wanted in of_video.items()
    ]
    return Shards.of(VIDEO_ROW, [pa.Table.from_pylist(rows, VIDEO_ROW)])


def keys_of(plan: Shards) -> list[Key]:
    return [
        (row["video_id"], wanted, row["n_segments"])
        for part in plan.parts()
        for row in part.to_pylist()
        for wanted in (range(row["n_segments"]) if row["segments"] is None else row["segments"])
    ]


def key_of(row: dict) -> Key:
    return row["video_id"], row["segment"], row["n_segments"]


def uri(video: str) -> str:
    return f"/v/{video}.mp4"


def newest(part) -> Iterator[dict]:
    return newest_versions(ledger_of(part).rows).to_pylist()


def play(seed: int) -> str | None:
    """What went wrong in it; the seed alone decides."""
    with pytest.MonkeyPatch.context() as patch:
        mislead(patch, seed)
        try:
            Play(seed)()
        except BaseException:
            return f"Play({seed}): {traceback.format_exc()}"
    return None


def test_who_removes_what_was_committed_anew_after_the_output_was_lost_hinders_nobody() -> None:
    """It slept before the removal; the ten thousand plays found it once."""
    assert play(3831) is None


def test_a_reader_sees_that_a_commit_went_though_a_sleeper_took_its_place() -> None:
    assert play(6719) is None


def test_a_run_that_has_the_output_bears_the_removals_of_one_that_had_it_before() -> None:
    assert play(7289) is None


@pytest.mark.timeout(7200)
def test_whoever_stops_or_dies_wherever_nothing_is_lost_or_doubled(amount: Amount) -> None:
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), processes, pa.set_cpu_count, (1,)) as pool:
        plays = amount.of(96, 10_000)
        wrong = [told for told in pool.map(play, range(plays), chunksize=12) if told]
    assert not wrong, f"{len(wrong)} of {plays}, for example {wrong[0]}"
