"""`emolake models`: what is available, and whether our arithmetic is the published one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from jobs.cli import EXIT_FAILED, print_json
from pipeline.models.catalog import (
    CARD,
    CONFIG,
    DEFAULT_MODEL,
    EMBEDDED,
    WEIGHTS,
    embedded_models,
    model_folder,
    model_revision,
)
from pipeline.models.config import read_config


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
    from pipeline.labels import label_set

    folder = model_folder(name)
    config = read_config(folder)
    return {
        "name": config.name,
        "family": config.family,
        "revision": model_revision(folder),
        "embedded": folder.parent == EMBEDDED,
        "megabytes": round((folder / WEIGHTS).stat().st_size / 1e6, 2),
        "label_set": config.label_set,
        "labels": list(label_set(config.label_set)),
    }


def verify_command(options: argparse.Namespace) -> int:
    from pipeline.golden import verify

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
