"""`emolake tune`: a recipe and labelled media -> a model folder. A thin shell round `pipeline.learning`:
Ray Data finds the faces, Ray Train joins the processes that train."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from emolake.jobs.cli import print_json
from emolake.jobs.options import read_tree
from emolake.pipeline.config import validated
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.needs import Needs

if TYPE_CHECKING:
    from emolake.pipeline.evaluation.labelled import LabelledTable
    from emolake.pipeline.learning.config import TuneConfig
    from emolake.pipeline.learning.examples import Found


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
        from emolake.jobs.graph.training import trained

        result = trained(config, options.output.resolve(), _say)
    else:
        result = tune(config, options.output, _say, _find_faces).told
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
