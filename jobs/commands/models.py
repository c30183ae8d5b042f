"""`emolake models`: what is available, and whether our arithmetic is the published one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from emolake.jobs.cli import EXIT_FAILED, print_json
from emolake.pipeline.models.catalog import (
    CARD,
    CONFIG,
    DEFAULT_MODEL,
    EMBEDDED,
    embedded_models,
    model_folder,
    model_revision,
    weight_files,
)
from emolake.pipeline.models.config import read_config


def list_command(options: argparse.Namespace) -> int:
    told = [_about(name) for name in embedded_models()]
    if options.json:
        print_json(told)
        return 0
    for model in told:
        mark = " (default)" if model["name"] == DEFAULT_MODEL else ""
        print(
            f"{model['name']}{mark}  {model['family']}  revision {model['revision']}  "
            f"{model['megabytes']:.1f} MB  labels {', '.join(model['labels'])}"
        )
    return 0


def show_command(options: argparse.Namespace) -> int:
    folder = model_folder(options.name)
    if options.json:
        config = json.loads((folder / CONFIG).read_text())
        print_json(_about(options.name) | {"config": config})
        return 0
    card = folder / CARD
    print(card.read_text() if card.exists() else f"{folder} has no model card ({CARD})")
    return 0


def _about(name: str) -> dict[str, Any]:
    from emolake.pipeline.labels import label_set

    folder = model_folder(name)
    config = read_config(folder)
    return {
        "name": config.name,
        "family": config.family,
        "revision": model_revision(folder),
        "embedded": folder.parent == EMBEDDED,
        "megabytes": round(sum(f.stat().st_size for f in weight_files(folder)) / 1e6, 2),
        "label_set": config.label_set,
        "labels": list(label_set(config.label_set)),
    }


def convert_command(options: argparse.Namespace) -> int:
    from emolake.pipeline.models.convert import Sources, convert

    sources = Sources(options.source, options.base, options.vision, options.question_tokenizer)
    made = convert(options.family, sources, options.output)
    revision = model_revision(options.output)
    told = {"output": str(options.output), "revision": revision, **asdict(made)}
    if options.json:
        print_json(told)
    else:
        print(
            f"{options.output}: revision {revision}, {made.tensors} tensors in {made.shards} files, "
            f"{made.bytes / 1e9:.2f} GB"
        )
    return 0


def verify_command(options: argparse.Namespace) -> int:
    from emolake.pipeline.models.golden import verify

    checks = verify(options.case)
    passed = all(check.ok for check in checks)
    if options.json:
        stages = [
            {
                "stage": check.stage,
                "difference": check.difference,
                "tolerance": check.tolerance,
                "ok": check.ok,
            }
            for check in checks
        ]
        print_json({"case": str(options.case), "ok": passed, "stages": stages})
    else:
        for check in checks:
            verdict = "ok" if check.ok else f"beyond {check.tolerance:g}"
            print(f"{check.stage:<16} {check.difference:.2e}  {verdict}")
    return 0 if passed else EXIT_FAILED
