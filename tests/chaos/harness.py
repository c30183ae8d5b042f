"""A corpus of many short segments, runs of it that can be hurt, and the promise they must keep."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emolake.jobs.bench.clips import loop_clip
from tests.conftest import ROOT, read_rows

SETTINGS = (
    "--set", "decode.segment_seconds=1",
    "--set", "resources.segments_per_commit=1",
    "--set", "limits.max_attempts=20",
)  # fmt: skip
SEGMENTS = 64


def make_segments(clip: Path, folder: Path) -> Path:
    """A corpus of at least SEGMENTS segments of one second: two long videos and some short ones."""
    folder.mkdir()
    for k in range(2):
        loop_clip(clip, folder / f"long{k}.mp4", 24.0)
    for k in range(4):
        (folder / f"short{k}.mp4").write_bytes(clip.read_bytes())
    return folder


@dataclass
class Runs:
    """Runs of one corpus into one output, each in a process of its own."""

    corpus: Path
    output: Path
    settings: tuple[str, ...] = SETTINGS
    env: dict[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """An environment entry that all processes of these runs have."""
        return f"CHAOS_OUTPUT={self.output}"

    def start(self, *extra: str, loud: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "emolake.jobs", "annotate", str(self.corpus)]
        command += ["--output", str(self.output), *self.settings, *extra]
        command += [] if loud else ["--quiet"]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"CHAOS_OUTPUT": str(self.output)} | self.env,
            start_new_session=True,
        )

    def finish(self, *extra: str, timeout: float = 600) -> None:
        """A run that is left alone, and must end well."""
        process = self.start(*extra)
        _, error = process.communicate(timeout=timeout)
        assert process.returncode == 0, error

    def committed(self) -> int:
        return len(list((self.output / "videos").rglob("*.parquet")))


Key = tuple[str, int, int, int]


def keyed(output: Path) -> dict[Key, dict[str, Any]]:
    """Annotations by their key, as a plain glob shows them; each must stand once."""
    rows = read_rows(output, "annotations")
    keys = [(Path(r["uri"]).name, r["segment"], r["track_id"], r["window"]) for r in rows]
    doubled = [key for key, count in Counter(keys).items() if count > 1]
    assert not doubled, f"{len(doubled)} keys stand twice, for example {doubled[0]}"
    return dict(zip(keys, rows, strict=True))


def assert_promise(output: Path, undisturbed: Path) -> None:
    """The promise of docs/reliability.md against an output that nothing happened to."""
    ours, theirs = keyed(output), keyed(undisturbed)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert row["emotion"] == theirs[key]["emotion"]
        assert dict(row["scores"]) == pytest.approx(dict(theirs[key]["scores"]), abs=1e-4)
    states = [
        Counter((Path(r["uri"]).name, r["segment"], r["state"]) for r in read_rows(path, "videos"))
        for path in (output, undisturbed)
    ]
    assert states[0] == states[1]
    assert max(states[0].values()) == 1
    tracks = [
        Counter(
            (Path(r["uri"]).name, r["segment"], r["track_id"]) for r in read_rows(path, "tracks")
        )
        for path in (output, undisturbed)
    ]
    assert tracks[0] == tracks[1]
    assert not list(output.rglob("*.partial"))


def processes(matches: Callable[[str], bool], mark: str) -> list[int]:
    """Processes whose command line matches and whose environment holds the mark of a run."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            ours = mark.encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        if ours and matches(line):
            found.append(int(folder.name))
    return found


def kill_at_random(
    runs: Runs, matches: Callable[[str], bool], kills: int, rng: random.Random
) -> Iterator[int]:
    """Runs until the end; kills a matching process now and then, and yields its pid.

    The count starts anew with each run that is needed; a run may end before its last kill.
    """
    done = 0
    while done < kills:
        process = runs.start()
        before = done
        while process.poll() is None and done < kills:
            time.sleep(rng.uniform(0.1, 0.6))
            victims = processes(matches, runs.mark)
            if victims and runs.committed():
                pid = rng.choice(victims)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                done += 1
                yield pid
        _, error = process.communicate(timeout=600)
        assert process.returncode in (0, 1), error
        if done == before:
            return
