"""`emolake models`: what is available, and whether our arithmetic is the published one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from emolake.jobs.cli import EXIT_FAILED, tell
from emolake.jobs.parser import Options, Parser, add_command, table_options
from emolake.pipeline.errors import UserError, in_a_line
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
    size_and_licence,
)
from emolake.pipeline.models.config import read_json
from emolake.pipeline.models.systems import PARTS, system, systems


def declare(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(actions, "list", "list the embedded models")
    listing.calls(list_command, "emolake models list")
    show = add_command(actions, "show", "show a model's card and sizes")
    show.option(
        "name", "NAME", "embedded model, model folder, description of a classifier, or org/name"
    )
    show.calls(show_command, "emolake models show emo-llama-tiny")
    get = add_command(actions, "get", "fetch a published model, and convert it where it needs that")
    get.option("name", "NAME", "such as llama-vid-7b; an unknown one lists those that are known")
    get.flag("--accept-licence", "what is shown without it: the licence of the weights")
    get.option("--output", "DIR", "new folder for one that is converted (default: NAME)", type=Path)
    get.option("--source", "PLACE", "own folder, file or org/name instead of the published one")
    get.option("--base", "PLACE", "likewise, the language model's")
    get.option("--vision", "PLACE", "likewise, the vision tower's")
    get.option("--question-tokenizer", "PLACE", "likewise, the Q-Former's tokenizer")
    get.calls(get_command, "emolake models get llama-vid-7b --accept-licence")
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
    compare = add_command(
        actions, "compare", "several models on the same labelled pictures or videos, as one table"
    )
    compare.option("model", "M,...", "as `evaluate --model` takes them")
    table_options(compare, required=True)
    compare.set_defaults(corruptions=None)
    compare.calls(
        compare_command, "emolake models compare emo-llama-tiny,enet_b0.yaml --data faces.parquet"
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
    published = f"`models get` fetches {', '.join(systems())}"
    return tell(options, told, *lines, published)


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
        "revision": model_revision(folder),
        **size_and_licence(folder),
        "family": config.family,
        "embedded": folder.parent == EMBEDDED,
        "label_set": config.label_set,
        "labels": list(label_set(config.label_set)),
    }


def get_command(options: Options) -> int:
    found = system(options.name, {part: getattr(options, part) for part in PARTS})
    if options.output is not None and found.family is None:
        raise UserError(f"models get {options.name} is no conversion: leave --output out")
    if not options.accept_licence:
        raise UserError(
            f"models get {options.name}: licence of the weights: {found.licence} ({found.terms}); "
            "--accept-licence says that you accept it"
        )
    from emolake.pipeline.models.getting import get

    folder = get(options.name, found, options.output or Path(options.name))
    told = {
        "name": read_config(folder).name,
        "revision": model_revision(folder),
        "output": str(folder),
        "licence": found.licence,
    }
    model = folder if found.family else found.source
    return tell(options, told, f"{folder}: revision {told['revision']}; --model {model} runs it")


def convert_command(options: Options) -> int:
    from emolake.pipeline.models.convert import Sources, convert

    sources = Sources(
        place_of(options.source),
        options.base and place_of(options.base),
        options.vision and place_of(options.vision),
        options.question_tokenizer and place_of(options.question_tokenizer, "tokenizer"),
    )
    made = convert(options.family, sources, options.output)
    revision = model_revision(options.output)
    told = {"output": str(options.output), "revision": revision, **asdict(made)}
    line = (
        f"{options.output}: revision {revision}, {made.tensors} tensors in {made.shards} files, "
        f"{made.bytes / 1e9:.2f} GB"
    )
    return tell(options, told, line)


_HEAD = ("model", "n", "accuracy", "UAR", "ECE", "windows/s", "MB", "licence")


def compare_command(options: Options) -> int:
    from emolake.jobs.comparison import of_a_table, pair_line

    told = of_a_table(options)
    rows = [_HEAD, tuple("---" for _ in _HEAD), *(_compared(entry) for entry in told["models"])]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    lines = [
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    return tell(
        options,
        told,
        *lines,
        "n: samples with a reading; intervals hold 95 %; windows/s: of one annotation actor, in this run",
        *map(pair_line, told["pairs"]),
    )


def _compared(entry: dict[str, Any]) -> tuple[str, ...]:
    def percent(name: str) -> str:
        low, high = entry[f"{name}_low"], entry[f"{name}_high"]
        return f"{100 * entry[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    model, speed = entry["model"], entry["windows_per_second"]
    cells = (
        model["name"],
        str(entry["n"]),
        percent("war"),
        percent("uar"),
        f"{entry['ece']:.3f}",
        f"{speed:.3g}" if speed else "-",
        f"{model['megabytes']:.3g}" if model["megabytes"] else "-",
        model["licence"] or "not told",
    )
    return tuple(in_a_line(cell).replace("|", "/") for cell in cells)


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
