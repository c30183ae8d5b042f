"""CONTRIBUTING's recipe for an annotator, followed: a file, and a line for each of the two lists."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from emolake.jobs.cli import main
from emolake.pipeline.annotators import base
from emolake.pipeline.annotators.base import FaceCrops, WindowInput, load_annotator
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.faces.encoding import encode_crop
from emolake.pipeline.models import catalog
from tests.pipeline.annotators import invented

MOST_LINES = 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "emolake.pipeline.annotators.invented", invented)
    monkeypatch.setitem(base._OF_FAMILY, "brightness", "invented:BrightnessAnnotator")
    monkeypatch.setitem(catalog._FAMILIES, "brightness", invented.BrightnessConfig)
    told = {"name": "bright", "family": "brightness", "threshold": 100}
    (tmp_path / "config.json").write_text(json.dumps(told))
    save_file({"nothing": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_file_of_less_than_sixty_lines_is_an_annotator(folder: Path, capsys) -> None:
    assert len(Path(invented.__file__).read_text().splitlines()) < MOST_LINES
    annotator = load_annotator(str(folder), AnnotatorConfig(), "cpu")
    view = annotator.needs.crops[0]
    made = []
    for level in (20, 240):
        crop = encode_crop(np.full((32, 32, 3), level, np.uint8), "png")
        crops = FaceCrops([crop], np.zeros((1, 5, 2), np.float32))
        made.append(WindowInput({view: crops}, np.zeros((1, 0), np.float32)))
    dark, bright = annotator.annotate(made)
    assert bright.emotion == "happiness" != dark.emotion
    assert main(["models", "show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "brightness"
