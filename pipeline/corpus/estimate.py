"""What an archive will take: hours and money, from a run over a sample of it.

A run's record says how long each stage was busy per second of video, how long it took to the first
segment, and how well the stage that bounded it was kept busy. Stages overlap, so the slowest one
bounds the run; the ledger says how many bytes a second of this archive's video has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emolake.pipeline.errors import UserError

POOLS = ("faces", "annotate")
HELD = ("cpu_seconds", "gpu_seconds")
_GIGA = 1e9


class Prices(BaseModel):
    """What the units of run.json's `cost` are paid for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = "USD"
    cpu_hour: float = Field(0.0, ge=0)
    gpu_hour: float = Field(0.0, ge=0)
    million_requests: float = Field(0.0, ge=0)
    gb_read: float = Field(0.0, ge=0)
    gb_written: float = Field(0.0, ge=0)

    @classmethod
    def read(cls, file: Path) -> Prices:
        """A YAML file; UserError where it is none, or names what has no price here."""
        try:
            return cls.model_validate(yaml.safe_load(file.read_text()) or {})
        except OSError as error:
            raise UserError(f"--prices {file} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise UserError(f"--prices {file} is not YAML") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            known = ", ".join(cls.model_fields)
            told = f"{where}: {first['msg']}; a price table holds {known}"
            raise UserError(f"--prices {file}: {told}") from None

    def of(self, cost: dict[str, float]) -> float:
        """Money for what a run took (`cost` of run.json)."""
        return (
            cost["cpu_seconds"] / 3600 * self.cpu_hour
            + cost["gpu_seconds"] / 3600 * self.gpu_hour
            + cost["requests"] / 1e6 * self.million_requests
            + cost["bytes_read"] / _GIGA * self.gb_read
            + cost["bytes_written"] / _GIGA * self.gb_written
        )


@dataclass(frozen=True)
class Sample:
    """One run. busy: seconds that a stage's actors were busy for a second of video; workers: how many
    there were; start_s: until the first segment could begin; filled: the part of the time from then on
    in which the busiest pool was busy; held: CPUs and GPUs kept from others, by their name in `cost`;
    moved: bytes and requests for a second of video; bytes_per_second: of the archive's files."""

    run_id: str
    busy: dict[str, float]
    workers: dict[str, int]
    start_s: float
    filled: float
    held: dict[str, float]
    moved: dict[str, float]
    bytes_per_second: float

    @classmethod
    def of(cls, run: dict[str, Any], bytes_per_second: float) -> Sample:
        """run: a run.json. UserError where it saw too little to tell anything."""
        seconds = run["video_seconds"]
        if not seconds or run.get("start_seconds") is None:
            raise UserError(f"run {run['run_id']} looked at no video; estimate from one that did")
        stages = run["stages"]
        busy = {pool: stages[pool]["busy_seconds"] for pool in POOLS}
        workers = {pool: int(stages[pool]["workers"]) for pool in POOLS}
        bound = max(busy[pool] / workers[pool] for pool in POOLS)
        start, wall = run["start_seconds"], run["wall_seconds"]
        cost = run["cost"]
        return cls(
            run_id=run["run_id"],
            busy={pool: spent / seconds for pool, spent in busy.items()},
            workers=workers,
            start_s=start,
            filled=min(bound / max(wall - start, 1e-9), 1.0),
            held={name: cost[name] / wall for name in HELD},
            moved={name: value / seconds for name, value in cost.items() if name not in HELD},
            bytes_per_second=bytes_per_second,
        )


@dataclass(frozen=True)
class Estimate:
    """What the archive will take. stage_hours: what each pool's actors are busy for, all together;
    balance: face actors that keep one annotation actor busy; cost: as in run.json."""

    video_hours: float
    wall_hours: float
    stage_hours: dict[str, float]
    workers: dict[str, int]
    bound_by: str
    balance: float
    cost: dict[str, float]


def estimate(sample: Sample, video_seconds: float, workers: Mapping[str, int | None]) -> Estimate:
    """workers: actors of each pool; those of the sample's run where None."""
    chosen = {pool: workers.get(pool) or sample.workers[pool] for pool in POOLS}
    busy = {pool: video_seconds * sample.busy[pool] for pool in POOLS}
    bound_by = max(POOLS, key=lambda pool: busy[pool] / chosen[pool])
    wall = sample.start_s + busy[bound_by] / chosen[bound_by] / max(sample.filled, 1e-9)
    more = {
        "cpu_seconds": sum(chosen.values()) / sum(sample.workers.values()),
        "gpu_seconds": chosen["annotate"] / sample.workers["annotate"],
    }
    held = {name: value * more[name] * wall for name, value in sample.held.items()}
    moved = {name: value * video_seconds for name, value in sample.moved.items()}
    return Estimate(
        video_hours=video_seconds / 3600,
        wall_hours=wall / 3600,
        stage_hours={pool: seconds / 3600 for pool, seconds in busy.items()},
        workers=chosen,
        bound_by=bound_by,
        balance=sample.busy["faces"] / max(sample.busy["annotate"], 1e-12),
        cost=held | moved,
    )
