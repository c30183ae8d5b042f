"""`emolake models compare`: models of every kind on the same faces, in one table."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emolake.jobs.cli import main
from emolake.pipeline.models.catalog import DEFAULT_MODEL
from tests.pipeline.annotators.classifiers import onnx_file
from tests.pipeline.annotators.trained import LABELS, train

LICENCE = "lab, for research only"


@pytest.fixture(scope="module")
def faces(fer2013: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred that nobody here was trained on."""
    table = tmp_path_factory.mktemp("faces") / "faces.parquet"
    pq.write_table(pq.read_table(fer2013 / "ferplus_valid.parquet").slice(0, 300), table)
    return table


@pytest.fixture(scope="module")
def models(fer2013: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model, a classifier barely trained, and an ONNX file that knows nothing."""
    folder = tmp_path_factory.mktemp("models")
    trained = train(fer2013 / "ferplus_train.parquet", folder / "resnet-fer", 1000, 1)
    (trained / "README.md").write_text("---\nlicense: other\nlicense_name: lab-1.0\n---\n# ours\n")
    onnx_file(folder / "means.onnx", len(LABELS))
    (folder / "means.yaml").write_text(
        f"labels: [{', '.join(LABELS)}]\nsize: 32\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nlicence: {LICENCE}\n"
    )
    return f"{DEFAULT_MODEL},{trained},{folder / 'means.yaml'}"


def test_compare_tells_figures_speed_size_and_licence(models: str, faces: Path, capsys) -> None:
    assert main(["models", "compare", models, "--data", str(faces), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    ours, resnet, means = told["models"]
    assert ours["war"] > 0.7 > max(resnet["war"], means["war"])
    for entry in told["models"]:
        assert entry["n"] == ours["n"]
        assert entry["war_low"] < entry["war"] < entry["war_high"]
        assert entry["windows_per_second"] > 0
    assert [entry["model"]["licence"] for entry in told["models"]] == [
        "apache-2.0",
        "lab-1.0",
        LICENCE,
    ]
    assert ours["model"]["megabytes"] == pytest.approx(11.8, abs=0.5)
    assert {(pair["first"], pair["second"]) for pair in told["pairs"]} == {
        (DEFAULT_MODEL, "resnet-fer"),
        (DEFAULT_MODEL, "means"),
        ("resnet-fer", "means"),
    }


def test_compare_prints_a_table(models: str, faces: Path, capsys) -> None:
    assert main(["models", "compare", models.split(",", 1)[1], "--data", str(faces)]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()[:4]
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    assert cells == ["model", "n", "accuracy", "UAR", "ECE", "windows/s", "MB", "licence"]
    assert set(rule) <= set("|- ")
    assert [row.split()[1] for row in rows] == ["resnet-fer", "means"]
    assert rows[1].endswith(f"| {LICENCE} |")
