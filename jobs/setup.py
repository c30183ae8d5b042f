"""What annotate and plan share: options -> a checked setting, before any work starts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from pipeline.config import Config, load_config
from pipeline.corpus import Video, find_videos
from pipeline.errors import UserError
from pipeline.lake.layout import Lake
from pipeline.lake.ledger import Ledger, read_ledger
from pipeline.models.catalog import model_folder, model_revision
from pipeline.models.config import ModelConfig
from pipeline.planning import Plan, make_plan
from pipeline.storage import Storage, parse_options


@dataclass(frozen=True)
class Setting:
    """One call of annotate or plan, validated."""

    config: Config
    model: ModelConfig
    model_revision: str
    storage: Storage
    lake: Lake
    reprocess: bool
    retry_failed: bool

    @property
    def config_hash(self) -> str:
        return self.config.results_hash(self.model_revision)

    def plan(self, videos: list[Video]) -> Plan:
        return make_plan(
            videos,
            self.ledger(),
            self.config,
            self.config_hash,
            reprocess=self.reprocess,
            retry_failed=self.retry_failed,
        )

    def ledger(self) -> Ledger:
        try:
            return read_ledger(self.lake)
        except OSError as error:
            words = " ".join(str(error).split())[:300]
            raise UserError(f"output {self.lake.uri} cannot be read: {words}") from None


def read_setting(options: argparse.Namespace) -> Setting:
    """Config, model and output of the common options; UserError for any mistake in them."""
    config = load_config(
        options.config, options.settings, model=options.model, corpus=options.corpus
    )
    folder = model_folder(config.model)
    storage = Storage(parse_options(options.storage_options))
    return Setting(
        config=config,
        model=ModelConfig.read(folder),
        model_revision=model_revision(folder),
        storage=storage,
        lake=Lake.at(options.output, storage),
        reprocess=options.reprocess,
        retry_failed=options.retry_failed,
    )


def read_videos(options: argparse.Namespace, storage: Storage) -> list[Video]:
    return find_videos(options.input, storage)
