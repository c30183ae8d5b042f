"""Models on the same labelled media, for `evaluate` and `models compare`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from emolake.jobs.options import load_config
from emolake.jobs.parser import Options
from emolake.jobs.setting import (
    ChosenModel,
    computes_here,
    model_files,
    names_apart,
    needs_of,
    pinned_models,
)
from emolake.pipeline.config import Config
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.corruptions import CORRUPTIONS
from emolake.pipeline.evaluation.intervals import one_person
from emolake.pipeline.evaluation.labelled import LabelledTable, of_face
from emolake.pipeline.evaluation.scoring import Sample, pairs, scored
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.labels import label_set
from emolake.pipeline.lake.commit import time_weighted_scores
from emolake.pipeline.lake.schema import ENDPOINT_USAGE
from emolake.pipeline.models.catalog import model_path, size_and_licence
from emolake.pipeline.models.config import ModelConfig
from emolake.pipeline.models.served import ServedConfig
from emolake.pipeline.storage.files import Storage, parse_options


def of_a_table(options: Options) -> dict[str, Any]:
    """Each model on the same labelled media, through the stages of the main job: `models`, an entry each,
    and `pairs` of them."""
    corruptions = _corruptions(options.corruptions)
    storage = Storage(parse_options(options.storage_options))
    table = LabelledTable.read(options.data, storage)
    config = pinned_models(_config(options))
    models = tuple(ChosenModel.of(name) for name in config.models)
    labels = labels_asked(options, models)
    names_apart(models)
    model_files(config, models)
    needs = needs_of(models, config)
    rows = labelled_rows(table, labels)
    named = zip(config.models, models, strict=True)
    told_of = {
        model.config.name: model.told | size_and_licence(model_path(name)) for name, model in named
    }
    from emolake.jobs.graph.labelled import running_ray  # Ray; scoring an output does without

    read: dict[str | None, _Read] = {}
    with running_ray(config.resources):
        for corruption in (None, *corruptions):
            read[corruption] = _annotated(table, rows, models, config, needs, corruption)
    clean = read.pop(None)
    samples = clean.samples
    spoilt: dict[str, dict[str, Any]] = {model.config.name: {} for model in models}
    for corruption, worse in read.items():
        for name, of_model in worse.samples.items():
            figures = scored(of_model, labels)
            kept = ("war", "war_low", "war_high", "uar", "uar_low", "uar_high", "ece", "unreadable")
            spoilt[name][str(corruption)] = {key: figures[key] for key in kept}
    outside = sum(label is not None for label in table.column("label")) - len(rows)
    panel = _panel(table, rows)
    entries = [
        scored(samples[model.config.name], labels)
        | {"outside": outside}
        | panel
        | ({"corruptions": spoilt[model.config.name]} if options.corruptions else {})
        | {"model": told_of[model.config.name]}
        | clean.speed(model.config)
        | _endpoint(model.config, (clean, *read.values()))
        for model in models
    ]
    return {"models": entries, "pairs": pairs(samples, labels)}


def _corruptions(asked: str | None) -> tuple[str, ...]:
    if asked is None:
        return ()
    names = tuple(CORRUPTIONS) if asked == "all" else tuple(asked.split(","))
    for name in names:
        if name not in CORRUPTIONS:
            raise UserError(f"--corruptions {name}: known are {', '.join(CORRUPTIONS)}, and all")
    return names


def _config(options: Options) -> Config:
    """Options of the stages that the models are scored through."""
    settings = list(options.settings)
    if options.label_set is not None:
        settings.append(f"annotator.label_set={options.label_set}")
    return load_config(None, settings, model=options.model)


def labels_asked(options: Options, models: tuple[ChosenModel, ...]) -> tuple[str, ...]:
    sets = {options.label_set or model.config.label_set for model in models}
    if len({label_set(name) for name in sets}) > 1:
        raise UserError(
            f"the models have different label sets ({', '.join(sorted(sets))}); give --label-set"
        )
    return label_set(sets.pop())


@dataclass(frozen=True)
class LabelledRow:
    """A row of a table that has a label of the set: its number, and the sample it is without a reading."""

    number: int
    sample: Sample


def labelled_rows(table: LabelledTable, labels: tuple[str, ...]) -> list[LabelledRow]:
    votes = table.votes(labels)
    attributes, units = table.attributes(), table.units()
    return [
        LabelledRow(
            number,
            Sample(
                None,
                label,
                votes.shares[number] if votes is not None else None,
                units[number],
                attributes[number],
            ),
        )
        for number, label in enumerate(table.label_indices(labels))
        if label is not None
    ]


@dataclass(frozen=True)
class _Read:
    """By model, a sample for each row of a table, and what that took."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    spent: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, spent: dict[str, Any]) -> None:
        """spent: of schema.ANNOTATED_ROW."""
        so_far = self.spent[spent["model"]]
        for name in ("windows", "seconds", *ENDPOINT_USAGE):
            so_far[name] = so_far.get(name, 0) + spent[name]

    def speed(self, model: ModelConfig) -> dict[str, Any]:
        """windows_per_second: of one annotation actor."""
        spent = self.spent[model.name]
        windows = spent.get("windows", 0)
        return {"windows_per_second": windows / spent["seconds"] if windows else None}


def _endpoint(model: ModelConfig, passes: Collection[_Read]) -> dict[str, Any]:
    """What a model behind an endpoint took in all."""
    if not isinstance(model, ServedConfig):
        return {}
    used = {
        name: sum(int(one.spent[model.name].get(name, 0)) for one in passes)
        for name in ENDPOINT_USAGE
    }
    return {"endpoint": used | {"cost": model.cost(used)}}


def _annotated(
    table: LabelledTable,
    rows: list[LabelledRow],
    models: tuple[ChosenModel, ...],
    config: Config,
    needs: Needs,
    corruption: str | None,
) -> _Read:
    """What a video shows is the mean over the windows of the face whose box the table tells, else of all its
    faces, each weighted by its length."""
    from emolake.jobs.graph.labelled import annotated_table

    told: dict[tuple[str, int], list[dict[str, Any]]] = {}
    boxes = table.boxes()
    read = _Read()
    made = annotated_table(
        table, config, needs, corruption,
        on_device=computes_here(models, config),
        revisions=tuple(model.revision for model in models),
    )  # fmt: skip
    for number, found in made:
        for window in of_face(found["annotations"], boxes[number]):
            told.setdefault((window["model"], number), []).append(dict(window))
        for spent in found["spent"]:
            read.add(spent)
    for name in (model.config.name for model in models):
        read.samples[name] = [reading(row.sample, told.get((name, row.number), [])) for row in rows]
    return read


def reading(sample: Sample, windows: list[dict[str, Any]]) -> Sample:
    if not windows:
        return sample
    quality = longest(windows).get("quality") or {}
    return replace(sample, scores=time_weighted_scores(windows), quality=quality)


def longest(windows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(windows, key=lambda window: window["end_s"] - window["start_s"])


def _panel(table: LabelledTable, rows: list[LabelledRow]) -> dict[str, Any]:
    """What one of the people who voted would score, where the votes were kept as they were cast."""
    votes = table.votes_as_cast()
    if votes is None:
        return {}
    numbers = np.array([row.number for row in rows])
    truth = np.array([row.sample.label for row in rows])
    return {"one_person": one_person(votes[numbers], truth)}


def pair_line(pair: Mapping[str, Any]) -> str:
    return (
        f"{pair['first']} less {pair['second']} on {pair['n']} samples: accuracy "
        f"{_signed(pair, 'war')}, UAR {_signed(pair, 'uar')}, McNemar p {pair['p_mcnemar']:.2g}"
    )


def _signed(pair: Mapping[str, Any], name: str) -> str:
    low, high = pair[f"{name}_low"], pair[f"{name}_high"]
    return f"{pair[name]:+.4f} ({low:+.4f} to {high:+.4f})"
