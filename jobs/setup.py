"""What annotate and plan share: options -> a checked setting, before any work starts."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config, FacesConfig, load_config
from pipeline.corpus import Video, find_videos
from pipeline.errors import UserError
from pipeline.faces.weights import checkpoint_file, identity_models
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
    detector_revision: str
    storage: Storage
    lake: Lake
    reprocess: bool
    retry_failed: bool

    @property
    def config_hash(self) -> str:
        return self.config.results_hash(self.model_revision, self.detector_revision)

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
    model = ModelConfig.read(folder)
    if model.face_info is not None and model.face_info.source != "onet":
        raise UserError(
            f"model {model.name} reads {model.face_info.source} features; the face stage makes onet's"
        )
    if config.faces.identity is not None:
        identity_models()
    storage = Storage(parse_options(options.storage_options))
    return Setting(
        config=config,
        model=model,
        model_revision=model_revision(folder),
        detector_revision=_detector_revision(config.faces),
        storage=storage,
        lake=Lake.at(options.output, storage),
        reprocess=options.reprocess,
        retry_failed=options.retry_failed,
    )


def _detector_revision(faces: FacesConfig) -> str:
    """Content hash of the detector's weights file; empty where it needs none of the user's."""
    if faces.detector == "mtcnn":
        return ""
    if faces.weights is None:
        raise UserError(
            "faces.detector=retinaface needs faces.weights=FILE, a published checkpoint"
        )
    with checkpoint_file(Path(faces.weights)).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_videos(options: argparse.Namespace, storage: Storage) -> list[Video]:
    return find_videos(options.input, storage)
