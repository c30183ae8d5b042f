"""Shared ground of the tests: real clips where they are there, clips made here where they are not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from emolake.pipeline.faces.align import CropSpec
from emolake.pipeline.faces.needs import CropView, Needs

SMALL_CROPS = Needs(crops=(CropView(CropSpec(48)),), features=True)
"""What the face stage makes in tests that look at faces and load no model."""

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", action="store_true", help="all faults of tests/chaos, not a few")


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} of the shared test material is not on this machine")
    return path


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real clips."""
    return _shared("clips")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of golden cases."""
    return _shared("golden")


@pytest.fixture(scope="session")
def fer2013() -> Path:
    """Folder of the labelled face tables."""
    return _shared("data")


@pytest.fixture(scope="session")
def demo_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's corpus: portrait, pan_away, no_face and damaged, a few seconds each."""
    from emolake.jobs.demo import make_corpus

    folder = tmp_path_factory.mktemp("demo") / "videos"
    make_corpus(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A suite started in the background ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_ray() -> None:
    """Runs of the suite use a Ray of their own and no configuration of the caller's, and leave their sessions
    where no other of the suite's processes looks."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        place = Path(
            f"/tmp/emolake-{worker}"
        )  # sockets in it have names of a hundred characters at most
        place.mkdir(exist_ok=True)
        os.environ["RAY_TMPDIR"] = str(place)
    for name in list(os.environ):
        if name == "RAY_ADDRESS" or name.startswith("EMOLAKE_"):
            del os.environ[name]


Emolake = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def emolake() -> Emolake:
    """Runs the command line as a user does, in a process of its own."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = os.environ | options.pop("env", {})
        return subprocess.run(
            [sys.executable, "-m", "emolake.jobs", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=options.pop("timeout", 240),
            cwd=options.pop("cwd", ROOT),
        )

    return run


@pytest.fixture(scope="session")
def demo_output(
    demo_videos: Path, emolake: Emolake, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The demo's corpus, annotated; to be read and not written."""
    output = tmp_path_factory.mktemp("annotated") / "out"
    done = emolake("annotate", demo_videos, "--output", output, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "log level" not in done.stderr
    return output


class S3:
    """A real S3 server process on a free port, with one bucket."""

    bucket = "archive"

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.env = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "planted-key-id",
            "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def fs(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(
            key=self.env["AWS_ACCESS_KEY_ID"],
            secret=self.env["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.endpoint,
            skip_instance_cache=True,
        )


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        store = S3(port)
        store.fs().mkdir(store.bucket)
        yield store
    finally:
        server.kill()
        server.wait()


def read_rows(output: Path, table: str) -> list[dict[str, Any]]:
    """All rows that a plain glob over a table shows."""
    folder = output / table
    if not folder.exists():
        return []
    dataset = ds.dataset(folder, format="parquet", partitioning="hive")
    rows: pa.Table = dataset.to_table()
    return rows.to_pylist()


def copy_clips(source: Path, target: Path, *names: str) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, target / name)
    return target
