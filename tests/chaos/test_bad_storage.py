"""Object storage that misbehaves, and a disk that is full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import Amount
from tests.chaos.harness import Runs, assert_promise, keyed
from tests.chaos.proxy import BadProxy, Mood
from tests.conftest import S3, Emolake, copy_clips, read_rows


@pytest.fixture
def bad(s3: S3) -> Iterator[BadProxy]:
    proxy = BadProxy(s3.endpoint, Mood(), seed=4)
    yield proxy
    proxy.close()


def test_errors_resets_delays_and_cut_answers_change_nothing(
    demo_videos: Path, s3: S3, bad: BadProxy, emolake: Emolake, tmp_path: Path, amount: Amount
) -> None:
    names = [p.name for p in sorted(demo_videos.iterdir())]
    corpus = copy_clips(demo_videos, tmp_path / "corpus", *names)
    for k in range(amount.of(0, 12)):
        (corpus / f"more{k}.mp4").write_bytes((corpus / "portrait.mp4").read_bytes())
    fs = s3.fs()
    fs.put(f"{corpus}/", f"{s3.bucket}/bad-day/", recursive=True)
    bad.mood = Mood(error=0.10, reset=0.04, truncate=0.04, delay=0.03)
    output = f"s3://{s3.bucket}/bad-lake"
    done = emolake(
        *("annotate", f"s3://{s3.bucket}/bad-day/", "--output", output, "--quiet"),
        *("--set", "resources.segments_per_commit=1"),
        env=s3.env | {"AWS_ENDPOINT_URL": bad.endpoint},
    )
    assert done.returncode == 0, done.stderr
    for fault in ("error", "reset", "delay"):
        assert bad.mood.met[fault] > 0, bad.mood.met
    local = tmp_path / "lake"
    fs.invalidate_cache()
    fs.get(f"{s3.bucket}/bad-lake", str(local), recursive=True)
    calm = Runs(corpus, tmp_path / "calm", settings=())
    calm.finish()
    assert_promise(local, calm.output)
    print("requests:", dict(bad.mood.met))


def test_a_bucket_that_denies_access_is_told_at_once(
    demo_videos: Path, s3: S3, bad: BadProxy, emolake: Emolake
) -> None:
    bad.mood = Mood(denied=True)
    env = s3.env | {"AWS_ENDPOINT_URL": bad.endpoint}
    for arguments in (
        (demo_videos, "--output", f"s3://{s3.bucket}/denied"),
        (f"s3://{s3.bucket}/bad-day/", "--output", "/nonexistent-by-purpose"),
    ):
        bad.mood.met.clear()
        done = emolake("annotate", *arguments, env=env)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert s3.bucket in done.stderr
        assert "planted-secret" not in done.stderr
        assert bad.mood.met.total() < 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    # A worker that is about to end may still hold a file of it.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_one_line_and_no_broken_file(
    demo_videos: Path, small_disk: Path, emolake: Emolake, tmp_path: Path
) -> None:
    output = small_disk / "output"
    (small_disk / "ballast").write_bytes(b"x" * 188_000)
    done = emolake("annotate", demo_videos, "--output", output, "--quiet")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert "No space left on device" in line
    assert str(output) in line
    assert len(line) < 400
    assert not list(output.rglob("*.partial"))
    for path in output.rglob("*.parquet"):
        assert path.stat().st_size > 0
    (small_disk / "ballast").unlink()
    done = emolake("annotate", demo_videos, "--output", output, "--quiet")
    assert done.returncode == 0, done.stderr
    assert len(read_rows(output, "videos")) == 4
    assert keyed(output)
