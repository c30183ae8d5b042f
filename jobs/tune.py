"""`emolake tune`: a recipe and labelled pictures -> a model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.cli import print_json
from pipeline.config import read_tree, validated
from pipeline.errors import UserError


def tune_command(options: argparse.Namespace) -> int:
    import torch

    from pipeline.training.tune import RECIPES, TuneConfig, tune

    named = RECIPES / f"{options.config}.yaml"
    file = named if named.exists() else Path(options.config)
    config = validated(TuneConfig, read_tree(file, options.settings), str(file))
    for table in (config.data.train, config.data.valid):
        if not table.exists():
            raise UserError(
                f"{table} does not exist; name it with --set data.train= or data.valid="
            )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    scores = tune(config, options.output, lambda line: print(line, file=sys.stderr, flush=True))
    result = {
        "model": str(options.output),
        "n": scores.n,
        "war": round(scores.war, 4),
        "uar": round(scores.uar, 4),
        "macro_f1": round(scores.macro_f1, 4),
        "ece": round(scores.ece, 4),
    }
    if options.json:
        print_json(result)
    else:
        told = ", ".join(f"{name} {value}" for name, value in result.items() if name != "model")
        print(f"{options.output}: {told}")
    return 0
