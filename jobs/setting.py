"""What annotate and plan share: options -> a checked setting, before any work starts."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from emolake.jobs.options import load_config
from emolake.jobs.parser import Options
from emolake.pipeline.annotators.onnx import described_network
from emolake.pipeline.config import ANNOTATOR_FOLDERS, Config
from emolake.pipeline.corpus.planning import Asked, Plan, make_plan
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.faces.brought import identity_models, weights_file
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.lake.forgetting import Forgotten
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.reading import steady_ledger
from emolake.pipeline.models.catalog import (
    content_of,
    folder_of,
    model_path,
    model_revision,
    pinned,
    read_config,
    weight_files,
)
from emolake.pipeline.models.classifier import ClassifierConfig
from emolake.pipeline.models.config import ModelConfig
from emolake.pipeline.models.served import ServedConfig
from emolake.pipeline.storage.chat import check_client
from emolake.pipeline.storage.files import Storage, parse_options
from emolake.pipeline.storage.shards import Shards

_SMALL_BYTES = 500_000_000  # of weights as they are stored; in float32 they may take twice that


@dataclass(frozen=True)
class ChosenModel:
    """A model of the run, as far as it can be known without loading it."""

    config: ModelConfig
    revision: str

    @property
    def told(self) -> dict[str, str]:
        return {"name": self.config.name, "revision": self.revision}

    @classmethod
    def of(cls, name_or_path: str) -> ChosenModel:
        path = model_path(name_or_path)
        return cls(read_config(path), model_revision(path))


@dataclass(frozen=True)
class Setting:
    """One call of annotate or plan, validated."""

    config: Config
    models: tuple[ChosenModel, ...]
    files: dict[str, str]
    """Option that names a file -> content hash."""
    storage: Storage
    lake: Lake
    asked: Asked

    @property
    def config_hash(self) -> str:
        revisions = "+".join(content_of(model.revision) for model in self.models)
        return self.config.results_hash(revisions, self.files)

    @property
    def needs(self) -> Needs:
        return needs_of(self.models, self.config)

    def plan(self, videos: Shards, ledger: Shards) -> Plan:
        with self._readable():
            forgotten = Forgotten.of(self.lake)
        asked = replace(self.asked, forgotten=forgotten) if forgotten else self.asked
        return make_plan(videos, ledger, self.config, self.config_hash, asked)

    def ledger(self) -> Shards:
        with self._readable():
            return steady_ledger(self.lake)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"output {self.lake.uri} cannot be read: {in_a_line(error, 300)}"
            ) from None


def names_apart(models: tuple[ChosenModel, ...]) -> None:
    """UserError where rows of two models could not be told apart."""
    names = [model.config.name for model in models]
    if len(set(names)) < len(names):
        raise UserError(
            f"two of the models have one name ({', '.join(names)}); rename a folder, or say `name:`"
        )


def needs_of(models: tuple[ChosenModel, ...], config: Config) -> Needs:
    """What the face stage must make for all models together."""
    needs = Needs.of_all(model.config.needs for model in models)
    if needs.transcript and config.annotator.recognizer:
        return replace(needs, sound=True)
    return needs


def computes_here(models: tuple[ChosenModel, ...], config: Config) -> bool:
    """Whether the annotation stage has work for a device of the cluster."""
    hears = bool(config.annotator.recognizer) and needs_of(models, config).transcript
    return hears or any(model.config.computes_here for model in models)


def small_models(models: tuple[ChosenModel, ...], config: Config) -> bool:
    """Whether one machine may hold them several times."""
    if config.annotator.names_folders or not all(model.config.computes_here for model in models):
        return False
    files = [file for name in config.models for file in weight_files(model_path(name))]
    return sum(file.stat().st_size for file in files) <= _SMALL_BYTES


def read_setting(options: Options) -> Setting:
    """Config, model and output of the common options; UserError for any mistake in them."""
    asked = Asked(options.reprocess, options.retry_failed, _since(options.since))
    config = pinned_models(
        load_config(options.config, options.settings, model=options.model, corpus=options.corpus)
    )
    models = tuple(ChosenModel.of(model) for model in config.models)
    contents = [content_of(model.revision) for model in models]
    if len(set(contents)) < len(contents):
        raise UserError(f"--model {config.model} names one model twice")
    names_apart(models)
    if config.faces.identity is not None:
        identity_models()
    storage = Storage(parse_options(options.storage_options))
    return Setting(
        config=config,
        models=models,
        files=model_files(config, models),
        storage=storage,
        lake=Lake.at(options.output, storage),
        asked=asked,
    )


def pinned_models(config: Config) -> Config:
    """With each hub's model at the commit that it has now, so that every node takes the same."""
    folders = {
        name: pinned(folder)
        for name in ANNOTATOR_FOLDERS
        if (folder := getattr(config.annotator, name)) is not None
    }
    return config.model_copy(
        update={
            "model": ",".join(map(pinned, config.models)),
            "annotator": config.annotator.model_copy(update=folders),
        }
    )


def _since(told: str | None) -> float | None:
    """A date or time (UTC where it names no zone), or so many days or hours before now (7d, 36h)."""
    if told is None:
        return None
    if match := re.fullmatch(r"(\d+)([dh])", told):
        hours = int(match[1]) * (24 if match[2] == "d" else 1)
        return time.time() - hours * 3600
    try:
        moment = datetime.fromisoformat(told)
    except ValueError:
        raise UserError(
            f"--since {told!r} is no time; write 2026-01-31, 2026-01-31T06:00+01:00, 7d or 36h"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_MULTIMODAL = frozenset({"emo-llama", "llama-vid", "emola", "emotion-llama"})
_HEEDED_BY = {
    "quantize": _MULTIMODAL,
    "flip": frozenset({"emo-llama", "llama-vid"}),
    "describe": _MULTIMODAL | {"served"},
    "read_answer": _MULTIMODAL,
    "action_units": frozenset({"emola"}),
}


def _refuse_idle_options(config: Config, models: tuple[ChosenModel, ...]) -> None:
    families = {model.config.family for model in models}
    for option, heeding in _HEEDED_BY.items():
        if getattr(config.annotator, option) and not families & heeding:
            names = ", ".join(model.config.name for model in models)
            raise UserError(f"annotator.{option} does nothing for {names}; leave it out")


def model_files(config: Config, models: tuple[ChosenModel, ...]) -> dict[str, str]:
    """The user's files that the run reads besides models; UserError where one is missing, or an option is set
    that none of the models heeds."""
    _refuse_idle_options(config, models)
    files: dict[str, str] = {}
    if config.faces.detector != "mtcnn":
        path = weights_file(config.faces.detector, config.faces.weights)
        # Both load at once, and tell a file of another kind or a missing extra while nothing is started.
        if config.faces.detector == "yunet":
            from emolake.pipeline.faces.yunet import YuNet

            YuNet(path, config.faces.weak_score)
        elif config.faces.detector == "scrfd":
            from emolake.pipeline.faces.scrfd import Scrfd

            Scrfd(path, config.faces.weak_score)
        files["faces.weights"] = _content_hash(path)
    if config.faces.attributes is not None:
        path = Path(config.faces.attributes)
        if not path.is_file():
            raise UserError(
                f"faces.attributes: {path} does not exist; download res34_fair_align_multi_7 from "
                "joojs/fairface and name the file"
            )
        files["faces.attributes"] = _content_hash(path)
    if any(model.config.family == "emola" for model in models):
        network = config.annotator.landmark_network
        if network is None:
            raise UserError(
                "EmoLA reads landmark features; name annotator.landmark_network=FILE, InsightFace's "
                "2d106det.onnx"
            )
        if not Path(network).is_file():
            raise UserError(f"annotator.landmark_network {network} is no file")
        files["annotator.landmark_network"] = _content_hash(Path(network))
    for name in ANNOTATOR_FOLDERS:
        folder = getattr(config.annotator, name)
        if folder is not None:
            path = folder_of(folder, f"annotator.{name}")
            files[f"annotator.{name}"] = content_of(model_revision(path))
    for model in models:
        if isinstance(model.config, ClassifierConfig):
            model.config.columns(config.annotator.label_set)
            if model.config.weights.is_file():
                described_network(model.config)
        if isinstance(model.config, ServedConfig):
            if not config.annotator.send_pictures:
                raise UserError(model.config.refusal)
            check_client()
    return files


def _content_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
