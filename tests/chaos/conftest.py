"""How much is tried, and the corpus that the faults strike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.harness import Runs, make_segments


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--chaos"):
        skip = pytest.mark.skip(reason="one of the long faults; run `make chaos`")
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(skip)


@dataclass(frozen=True)
class Amount:
    """Counts of a test: few in the suite, all with --chaos."""

    whole: bool

    def of(self, few: int, many: int) -> int:
        return many if self.whole else few


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Amount:
    return Amount(request.config.getoption("--chaos"))


@pytest.fixture(scope="session")
def segments(demo_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At least 64 segments of a second."""
    folder = tmp_path_factory.mktemp("chaos") / "corpus"
    return make_segments(demo_videos / "portrait.mp4", folder)


@pytest.fixture(scope="session")
def undisturbed(segments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    Runs(segments, output).finish()
    return output
