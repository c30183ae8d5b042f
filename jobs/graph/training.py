"""Training in several processes that Ray Train joins; what each does is `pipeline.learning`'s."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from emolake.jobs.graph.start import start_ray, stop_ray
from emolake.pipeline.config import ResourcesConfig
from emolake.pipeline.errors import JobFailed, in_a_line
from emolake.pipeline.learning.config import TuneConfig
from emolake.pipeline.learning.tune import tune

_RESULT, _PROGRESS = "training/result.json", "training/progress.log"


def trained(config: TuneConfig, output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains in `workers.count` processes of the Ray of RAY_ADDRESS, or of one of its own. A worker that
    dies is started again, and all go on from the last checkpoint."""
    workers = config.workers
    progress = output / _PROGRESS
    progress.parent.mkdir(parents=True, exist_ok=True)
    progress.write_text("")
    start_ray(ResourcesConfig(face_actors=max(1, round(workers.count * workers.cpus))))
    try:
        trainer = TorchTrainer(
            _train_here,
            train_loop_config={"config": config.model_dump(mode="json"), "output": str(output)},
            scaling_config=ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.gpus > 0,
                resources_per_worker={"CPU": workers.cpus}
                | ({"GPU": workers.gpus} if workers.gpus else {}),
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(output / "training"),
                failure_config=FailureConfig(max_failures=workers.max_failures),
            ),
        )
        with _following(progress, say):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise JobFailed(f"training failed: {in_a_line(error)[-500:]}") from None
    finally:
        stop_ray()
    told: dict[str, Any] = json.loads((output / _RESULT).read_text())
    return told


def _train_here(given: dict[str, Any]) -> None:
    """In each worker: the faces are found by now, so nothing of a table is read but its texts."""
    config = TuneConfig.model_validate(given["config"])
    output = Path(given["output"])

    def told(line: str) -> None:
        with (output / _PROGRESS).open("a") as lines:
            lines.write(f"{line}\n")

    tuned = tune(config, output, told, report=ray.train.report)
    if ray.train.get_context().get_world_rank() == 0:
        (output / _RESULT).write_text(json.dumps(tuned.told))


@contextmanager
def _following(progress: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Says what the workers write there: their standard error stays on their nodes."""
    ended = threading.Event()

    def follow() -> None:
        with progress.open() as lines:
            while not ended.wait(1.0):
                for line in lines:
                    say(line.rstrip())
            for line in lines:
                say(line.rstrip())

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
