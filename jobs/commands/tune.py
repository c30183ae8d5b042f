"""`emolake tune`: a recipe and labelled media -> a model folder. A thin shell round `pipeline.learning`:
Ray Data finds the faces, Ray Train joins the processes that train."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emolake.jobs.cli import print_json
from emolake.pipeline.config import read_tree, validated
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.faces.needs import Needs

if TYPE_CHECKING:
    from emolake.pipeline.evaluation.labelled import LabelledTable
    from emolake.pipeline.learning.config import TuneConfig
    from emolake.pipeline.learning.examples import Found
    from emolake.pipeline.learning.tune import Tuned

_RESULT, _PROGRESS = "training/result.json", "training/progress.log"


def tune_command(options: argparse.Namespace) -> int:
    import torch

    from emolake.pipeline.learning.config import RECIPES, TuneConfig
    from emolake.pipeline.learning.tune import prepare, tune

    named = RECIPES / f"{options.config}.yaml"
    file = named if named.exists() else Path(options.config)
    config = validated(TuneConfig, read_tree(file, options.settings), str(file))
    _check(config)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if config.workers.count > 1 or os.environ.get("RAY_ADDRESS"):
        prepare(config, options.output, _find_faces, _say)
        result = _on_ray(config, options.output.resolve())
    else:
        result = _told(tune(config, options.output, _say, _find_faces))
    result = {"model": str(options.output)} | result
    if options.json:
        print_json(result)
    else:
        told = ", ".join(f"{k} {v}" for k, v in result.items() if k not in ("model", "skipped"))
        print(f"{options.output}: {told}")
    return 0


def _check(config: TuneConfig) -> None:
    """UserError for what would only show after the faces are found."""
    from emolake.pipeline.storage.files import Storage

    for table in (config.data.train, config.data.valid):
        fs, path = Storage().locate(table)
        if not fs.exists(path):
            raise UserError(
                f"{table} does not exist; name it with --set data.train= or data.valid="
            )
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tensorboard: true needs it: pip install 'emolake[tune]'")


def _find_faces(table: LabelledTable, needs: Needs, frames: int) -> Iterator[Found]:
    """By the stages of the main job, which bring Ray: not where the faces are found already."""
    from emolake.jobs.graph.labelled import windows_of_table

    return windows_of_table(table, needs, frames)


def _told(tuned: Tuned) -> dict[str, Any]:
    scores = tuned.scores
    names = ("war", "uar", "macro_f1", "ece")
    figures = {name: round(getattr(scores, name), 4) for name in names}
    return {"n": scores.n, **figures, "skipped": tuned.skipped}


def _on_ray(config: TuneConfig, output: Path) -> dict[str, Any]:
    """Trains in `workers.count` processes of the Ray of RAY_ADDRESS, or of one of its own. A worker that
    dies is started again, and all go on from the last checkpoint."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from emolake.jobs.graph.flow import start_ray
    from emolake.pipeline.config import ResourcesConfig

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
        with _following(progress):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise JobFailed(f"training failed: {' '.join(str(error).split())[-500:]}") from None
    finally:
        ray.shutdown()
    told: dict[str, Any] = json.loads((output / _RESULT).read_text())
    return told


def _train_here(given: dict[str, Any]) -> None:
    """In each worker: the faces are found by now, so nothing of a table is read but its texts."""
    import ray.train

    from emolake.pipeline.learning.config import TuneConfig
    from emolake.pipeline.learning.tune import tune

    config = TuneConfig.model_validate(given["config"])
    output = Path(given["output"])

    def told(line: str) -> None:
        with (output / _PROGRESS).open("a") as lines:
            lines.write(f"{line}\n")

    tuned = tune(config, output, told, report=ray.train.report)
    if ray.train.get_context().get_world_rank() == 0:
        (output / _RESULT).write_text(json.dumps(_told(tuned)))


@contextmanager
def _following(progress: Path) -> Iterator[None]:
    """Says what the workers write there: their standard error stays on their nodes."""
    ended = threading.Event()

    def follow() -> None:
        with progress.open() as lines:
            while not ended.wait(1.0):
                for line in lines:
                    _say(line.rstrip())
            for line in lines:
                _say(line.rstrip())

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
