"""`emolake models`: what is available, and whether our arithmetic is the published one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from emolake.jobs.cli import EXIT_FAILED, tell
from emolake.jobs.parser import Options, Parser, add_command
from emolake.pipeline.models.catalog import (
    CARD,
    CONFIG,
    DEFAULT_MODEL,
    EMBEDDED,
    embedded_models,
    model_path,
    model_revision,
    place_of,
    read_config,
    weight_files,
)
from emolake.pipeline.models.config import read_json


def declare(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(actions, "list", "list the embedded models")
    listing.calls(list_command, "emolake models list")
    show = add_command(actions, "show", "show a model's card and sizes")
    show.option(
        "name", "NAME", "embedded model, model folder, description of a classifier, or org/name"
    )
    show.calls(show_command, "emolake models show emo-llama-tiny")
    convert = add_command(actions, "convert", "turn a published checkpoint into a model folder")
    convert.option(
        "source", "SRC", "the published folder or file, or org/name of a hub (so those below)"
    )
    convert.add_argument(
        "--family", required=True, choices=("llama-vid", "emola", "emotion-llama"),
        help="whose layout it is",
    )  # fmt: skip
    convert.option("--output", "DIR", "new folder", required=True, type=Path)
    convert.option("--base", "DIR", "language model's folder, where SRC is an adapter")
    convert.option("--vision", "PATH", "the vision tower's file or folder, if apart")
    convert.option("--question-tokenizer", "PATH", "llama-vid: the Q-Former's (bert-base-uncased)")
    convert.calls(
        convert_command,
        "emolake models convert --family llama-vid llama-vid-7b/ --vision eva_vit_g.pth --output DIR",
    )
    verify = add_command(
        actions, "verify", "compare our arithmetic with a published implementation's golden case"
    )
    verify.option("case", "CASE_DIR", "folder of the case", type=Path)
    verify.calls(verify_command, "emolake models verify golden/llamavid_a")


def list_command(options: Options) -> int:
    told = [_about(name) for name in embedded_models()]
    lines = (
        f"{model['name']}{' (default)' if model['name'] == DEFAULT_MODEL else ''}  {model['family']}  "
        f"revision {model['revision']}  {model['megabytes']:.1f} MB  labels {', '.join(model['labels'])}"
        for model in told
    )
    return tell(options, told, *lines)


def show_command(options: Options) -> int:
    path = model_path(options.name)
    config = (
        read_config(path).model_dump(mode="json") if path.is_file() else read_json(path / CONFIG)
    )
    card = path / CARD
    line = card.read_text() if card.exists() else f"{path} has no model card ({CARD})"
    return tell(options, _about(options.name) | {"config": config}, line)


def _about(name: str) -> dict[str, Any]:
    from emolake.pipeline.labels import label_set

    folder = model_path(name)
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


def convert_command(options: Options) -> int:
    from emolake.pipeline.models.convert import Sources, convert

    given = (options.source, options.base, options.vision, options.question_tokenizer)
    sources = Sources(*(place and place_of(place) for place in given))
    made = convert(options.family, sources, options.output)
    revision = model_revision(options.output)
    told = {"output": str(options.output), "revision": revision, **asdict(made)}
    line = (
        f"{options.output}: revision {revision}, {made.tensors} tensors in {made.shards} files, "
        f"{made.bytes / 1e9:.2f} GB"
    )
    return tell(options, told, line)


def verify_command(options: Options) -> int:
    from emolake.pipeline.models.golden import verify

    checks = verify(options.case)
    passed = all(check.ok for check in checks)
    names = ("stage", "difference", "tolerance", "ok")
    stages = [{name: getattr(check, name) for name in names} for check in checks]
    lines = (
        f"{check.stage:<16} {check.difference:.2e}  "
        f"{'ok' if check.ok else f'beyond {check.tolerance:g}'}"
        for check in checks
    )
    code = tell(options, {"case": str(options.case), "ok": passed, "stages": stages}, *lines)
    return code if passed else EXIT_FAILED
