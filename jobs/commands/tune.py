"""`emolake tune`: a recipe and labelled media -> a model folder. A thin shell round `pipeline.learning`:
Ray Data finds the faces, Ray Train joins the processes that train."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from emolake.jobs.cli import tell
from emolake.jobs.options import read_tree
from emolake.jobs.parser import Options, Parser
from emolake.pipeline.config import validated
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.models.catalog import pinned

if TYPE_CHECKING:
    from emolake.pipeline.evaluation.labelled import LabelledTable
    from emolake.pipeline.learning.config import TuneConfig
    from emolake.pipeline.learning.examples import Found


def declare(parser: Parser) -> None:
    parser.option("--config", "FILE", "YAML, or the name of an embedded recipe", required=True)
    parser.pairs(
        "--set", "one option of the recipe, for example data.train=FILE; repeatable", "settings"
    )
    parser.option("--output", "DIR", "model folder to write", required=True, type=Path)
    parser.option("--threads", None, "CPU threads (torch's default)", type=int)
    parser.calls(
        run, "emolake tune --config emo-llama-tiny --set data.train=train.parquet --output my-model"
    )


def run(options: Options) -> int:
    import torch

    from emolake.pipeline.learning.config import RECIPES, TuneConfig
    from emolake.pipeline.learning.tune import prepare, tune

    named = RECIPES / f"{options.config}.yaml"
    file = named if named.exists() else Path(options.config)
    config = validated(TuneConfig, read_tree(file, options.settings), str(file))
    if config.start is not None:  # of a hub's model the commit that it has now, for every worker
        start = config.start.model_copy(update={"model": pinned(config.start.model)})
        config = config.model_copy(update={"start": start})
    _check(config)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if config.workers.count > 1 or os.environ.get("RAY_ADDRESS"):
        prepare(config, options.output, _find_faces, _say)
        from emolake.jobs.graph.training import trained

        result = trained(config, options.output.resolve(), _say)
    else:
        result = tune(config, options.output, _say, _find_faces).told
    result = {"model": str(options.output)} | result
    told = ", ".join(f"{k} {v}" for k, v in result.items() if k not in ("model", "skipped"))
    return tell(options, result, f"{options.output}: {told}")


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
