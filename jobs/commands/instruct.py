"""`emolake instruct`: a labelled set -> instruction records, by templates or by a model that looks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser
from emolake.pipeline.errors import JobFailed, UserError
from emolake.pipeline.labels import label_set
from emolake.pipeline.learning.records.sources import SOURCES, Item, read_items
from emolake.pipeline.learning.records.templates import DEFAULT, KINDS, Kind, Templates
from emolake.pipeline.learning.records.writing import check_name, item_key, record, write_records

if TYPE_CHECKING:
    from emolake.pipeline.learning.records.endpoint import Endpoint, Reply

_FRAMES = 4  # of a clip, that a model is shown
_FACE, _MARGIN = 336, 0.4  # pixels, and border round ArcFace's crop: what a model is shown
_SAID_EVERY_S = 15.0


def declare(parser: Parser) -> None:
    parser.add_argument(
        "set", choices=tuple(SOURCES), help="how the set is laid out; table: one of your own"
    )
    parser.option("source", "SOURCE", "its folder, or the table's file", type=Path)
    parser.option("--output", "FILE", ".parquet or .jsonl to write", required=True, type=Path)
    parser.add_argument("--split", default="train", help="train, valid or test")
    parser.option("--fold", "N", "dfew, mafw: which of five", type=int, default=1)
    parser.option("--label-set", "NAME", "labels asked for (default: the set's)")
    parser.option(
        "--kind", "KIND,...", "label, reason, description: records an example", default="label"
    )
    parser.option("--templates", "FILE", "questions and answers (YAML)", type=Path)
    parser.option("--seed", "N", "of the choice of templates", type=int, default=0)
    parser.option("--limit", "N", "so many examples at most", type=int)
    parser.option(
        "--endpoint",
        "URL",
        "OpenAI-compatible API whose model writes the descriptions; it is sent the faces' pictures",
    )
    parser.option("--endpoint-model", "NAME", "the model's name there")
    parser.option("--api-key-env", "NAME", "variable that holds the key", default="OPENAI_API_KEY")
    parser.option("--concurrency", "N", "requests at a time", type=int, default=8)
    parser.option("--requests-per-minute", "N", "so many at most (default: no limit)", type=float)
    parser.option("--timeout", "S", "of one request", type=float, default=60.0)
    parser.option("--retries", "N", "of a failed request", type=int, default=5)
    parser.option(
        "--attempts", "N", "for an answer that agrees with the label", type=int, default=3
    )
    parser.option("--token-prices", "IN,OUT", "of a million tokens read and written")
    parser.calls(
        run, "emolake instruct raf-db RAF-DB/ --split train --kind reason --output raf.parquet"
    )


def run(options: Options) -> int:
    check_name(options.output)
    named = options.label_set or SOURCES[options.set].labels
    if named is None:
        raise UserError("a table of your own needs --label-set NAME")
    labels = label_set(named)
    kinds = _kinds(options.kind)
    templates = Templates.read(options.templates or DEFAULT)
    for kind in kinds:
        templates.check(kind, labels)
    items, left_out = _usable(options, labels)
    counts: dict[str, Any] = {"items": len(items), "left_out": dict(left_out)}
    if options.endpoint is None:
        made = (
            record(
                item,
                templates.filled(kind, str(item.label), labels, f"{options.seed}{kind}{item_key(item)}"),
                source=options.set, split=options.split, written_by=f"template:{kind}",
            )
            for item in items
            for kind in kinds
        )  # fmt: skip
        counts["records"] = write_records(options.output, made)
    else:
        counts |= _described(options, items, labels, templates)
    return _tell(options, counts)


def _tell(options: Options, counts: dict[str, Any]) -> int:
    result = {"output": str(options.output), **counts}
    line = f"{options.output}: {counts['records']} records of {counts['items']} examples"
    left = (f"  left out: {count} ({reason})" for reason, count in counts["left_out"].items())
    code = tell(options, result, line, *left)
    if counts.get("unanswered"):
        raise JobFailed(
            f"{counts['unanswered']} examples have no answer; the same command asks for them again"
        )
    return code


def _kinds(given: str) -> tuple[Kind, ...]:
    kinds = tuple(part.strip() for part in given.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kind {kind!r} is unknown; known kinds: {', '.join(KINDS)}")
    return kinds  # type: ignore[return-value]


def _usable(options: Options, labels: tuple[str, ...]) -> tuple[list[Item], Counter[str]]:
    """Examples with a label of the set and media that are there; why the others are none."""
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    for item in read_items(options.set, options.source, options.split, options.fold):
        reason = _useless(item, labels)
        if reason is not None:
            left_out[reason] += 1
        elif options.limit is None or len(items) < options.limit:
            items.append(item)
    if not items:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise UserError(f"{options.source} gives no example of split {options.split!r}: {told}")
    return items, left_out


def _useless(
    item: Item, labels: tuple[str, ...]
) -> Literal["no label", "unknown label", "no media"] | None:
    if item.label is None:
        return "no label"
    if item.label not in labels:
        return "unknown label"
    uri, frames = item.media.get("uri"), item.media.get("frames")
    there = frames or item.media.get("image") or (uri and ("://" in uri or Path(uri).exists()))
    return None if there else "no media"


def _described(
    options: Options, items: list[Item], labels: tuple[str, ...], templates: Templates
) -> dict[str, Any]:
    """Asks for what the journal has no answer to yet, then writes the records."""
    endpoint, prices = _endpoint(options), _token_prices(options)
    journal = options.output.with_name(f".{options.output.name}.journal")
    known = _read_journal(journal, options.endpoint_model)
    keys = [item_key(item) for item in items]
    todo = [item for item, key in zip(items, keys, strict=True) if key not in known]
    spent: Counter[str] = Counter()
    unanswered = 0
    started = said = time.monotonic()
    with _Journal(journal, options.endpoint_model) as entries:
        for number, reply in enumerate(_replies(endpoint, todo, labels, journal), 1):
            for name in ("requests", "input_tokens", "output_tokens"):
                spent[name] += getattr(reply, name)
            unanswered += reply.unanswered
            if not reply.unanswered:
                known[reply.key] = {"description": reply.description, "reason": reply.reason}
                entries.write(reply)
            if time.monotonic() - said > _SAID_EVERY_S:
                said = time.monotonic()
                print(f"{number} of {len(todo)} asked, {said - started:.0f} s", file=sys.stderr)
    dropped: Counter[str] = Counter()
    records = []
    for item, key in zip(items, keys, strict=True):
        told = known.get(key)
        if told is None:
            continue
        if told["description"] is None:
            dropped[told["reason"]] += 1
            continue
        asked = templates.filled("description", str(item.label), labels, f"{options.seed}{key}")
        records.append(
            record(
                item, replace(asked, answer=told["description"]),
                source=options.set, split=options.split, written_by=options.endpoint_model,
            )
        )  # fmt: skip
    counts = {
        "records": write_records(options.output, records),
        "dropped": dict(dropped),
        "unanswered": unanswered,
        "spent": dict(spent) | _cost(prices, spent),
    }
    if not unanswered:
        journal.unlink()
    return counts


def _endpoint(options: Options) -> Endpoint:
    from emolake.pipeline.learning.records.endpoint import Endpoint, EndpointConfig

    if options.endpoint_model is None:
        raise UserError("--endpoint needs --endpoint-model NAME")
    key = os.environ.get(options.api_key_env)
    if not key:
        raise UserError(
            f"--endpoint needs a key in ${options.api_key_env} (--api-key-env names another)"
        )
    for name in ("concurrency", "attempts"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    config = EndpointConfig(
        url=options.endpoint,
        model=options.endpoint_model,
        key=key,
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        timeout_s=options.timeout,
        retries=options.retries,
        attempts=options.attempts,
    )
    return Endpoint(config)


def _token_prices(options: Options) -> tuple[float, float] | None:
    """Of a million tokens, read and written."""
    if options.token_prices is None:
        return None
    try:
        read, written = map(float, options.token_prices.split(","))
    except ValueError:
        raise UserError("--token-prices is not IN,OUT: prices of a million tokens") from None
    return read, written


def _cost(prices: tuple[float, float] | None, spent: Counter[str]) -> dict[str, float]:
    if prices is None:
        return {}
    read, written = prices
    return {"cost": (spent["input_tokens"] * read + spent["output_tokens"] * written) / 1e6}


def _replies(
    endpoint: Endpoint, items: list[Item], labels: tuple[str, ...], journal: Path
) -> Iterator[Reply]:
    """The faces of the examples, found as a job finds them, and what the model writes of each."""
    from emolake.jobs.graph.labelled import windows_of_table
    from emolake.pipeline.evaluation.labelled import LabelledTable
    from emolake.pipeline.faces.align import CropSpec
    from emolake.pipeline.faces.needs import CropView, Needs
    from emolake.pipeline.learning.records.endpoint import Ask, Reply

    if not items:
        return
    table_file = journal.with_suffix(".faces.parquet")
    write_records(table_file, (item.media | {"label": item.label} for item in items))
    needs = Needs(crops=(CropView(CropSpec(_FACE, _MARGIN)),))
    table = LabelledTable.read(table_file)
    faceless: list[Reply] = []

    def asks() -> Iterator[Ask]:
        seen: set[int] = set()
        for row, found in windows_of_table(table, needs, _FRAMES):
            if row not in seen and found["windows"]:
                seen.add(row)
                pictures = found["windows"][0]["crops"][0]["pictures"]
                item = items[row]
                yield Ask(item_key(item), _few(pictures), str(item.label), labels)
        for row, item in enumerate(items):
            if row not in seen:
                faceless.append(Reply(item_key(item), None, "no face was found", False, 0, 0, 0))

    try:
        yield from endpoint.replies(asks())
        yield from faceless
    finally:
        table_file.unlink(missing_ok=True)


def _few(pictures: list[bytes]) -> list[bytes]:
    """At most _FRAMES, evenly chosen."""
    step = max(len(pictures) - 1, 1) / max(_FRAMES - 1, 1)
    if len(pictures) <= _FRAMES:
        return pictures
    return [pictures[round(k * step)] for k in range(_FRAMES)]


class _Journal:
    """Answers as they come, a line each, so that a run that dies has lost none it was told."""

    def __init__(self, path: Path, model: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._model = model

    def __enter__(self) -> _Journal:
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        self._stream = self._path.open("a")
        if torn:  # the last line of a run that died must not swallow the next
            self._stream.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, reply: Reply) -> None:
        told = {
            "key": reply.key,
            "model": self._model,
            "description": reply.description,
            "reason": reply.reason,
        }
        self._stream.write(json.dumps(told) + "\n")
        self._stream.flush()


def _read_journal(path: Path, model: str) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                told = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that died
            if told["model"] == model:
                known[told["key"]] = told
    return known
