"""Hours and money of an archive from a sample's record."""

from pathlib import Path

import pytest

from emolake.pipeline.corpus.estimate import Prices, Sample, estimate
from emolake.pipeline.errors import UserError

RUN = {
    "run_id": "sample",
    "video_seconds": 1000.0,
    "wall_seconds": 130.0,
    "start_seconds": 30.0,
    "stages": {
        "faces": {"busy_seconds": 150.0, "workers": 2},
        "annotate": {"busy_seconds": 50.0, "workers": 1},
    },
    "cost": {
        **{"cpu_seconds": 390.0, "gpu_seconds": 130.0},
        **{"bytes_read": 5e8, "bytes_written": 1e6, "requests": 2000},
    },
}
"""Two face actors bound it: 75 s busy in the 100 s after a start of 30 s."""


def test_the_same_machine_takes_its_pace_to_the_archive() -> None:
    sample = Sample.of(RUN, 5e5)
    assert (sample.start_s, sample.filled) == (pytest.approx(30), pytest.approx(0.75))
    told = estimate(sample, 36_000.0, {})
    assert told.bound_by == "faces"
    assert told.wall_hours * 3600 == pytest.approx(30 + 36 * 100)
    assert told.balance == pytest.approx(3), "three face actors to one annotation actor"
    assert told.cost["cpu_seconds"] == pytest.approx(3 * told.wall_hours * 3600)
    assert told.cost["requests"] == pytest.approx(72_000)


def test_more_actors_move_the_bound() -> None:
    told = estimate(Sample.of(RUN, 5e5), 36_000.0, {"faces": 12, "annotate": None})
    assert told.bound_by == "annotate"
    assert told.wall_hours * 3600 == pytest.approx(30 + 36 * 50 / 0.75)
    assert told.cost["cpu_seconds"] / told.wall_hours / 3600 == pytest.approx(3 * 13 / 3)


def test_money_is_the_units_by_their_prices(tmp_path: Path) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text(
        "{currency: EUR, cpu_hour: 0.36, gpu_hour: 3.6, million_requests: 5, gb_read: 2}"
    )
    prices = Prices.read(table)
    assert prices.of(RUN["cost"]) == pytest.approx(0.039 + 0.13 + 0.01 + 1.0)


@pytest.mark.parametrize("text", ["cpu_hour: -1", "gpu: 2", "[1]", "a: b: c", "cpu_hour: much"])
def test_a_price_table_that_is_none_is_told_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(UserError, match=r"prices\.yaml"):
        Prices.read(tmp_path / "prices.yaml")


def test_a_run_that_saw_nothing_tells_nothing() -> None:
    with pytest.raises(UserError, match="looked at no video"):
        Sample.of(RUN | {"video_seconds": 0.0}, 5e5)
