"""The Dockerfile and the cluster launcher's file."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import ray
import yaml

from tests.conftest import ROOT

DOCKERFILE = ROOT / "infra" / "Dockerfile"


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_both_images_install_what_is_pinned_and_run_as_nobody_special() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    stages: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("FROM "):
            stages[line.split(" AS ")[1]] = []
        elif stages:
            stages[list(stages)[-1]].append(line)
    for target in ("cpu", "cuda"):
        assert "USER 1000" in stages[target]
        (install,) = (line for line in stages[target] if "pip install" in line)
        assert "--constraint constraints.txt" in install
        assert install.endswith('".[cluster]"')
    assert lines[0].startswith("# syntax=")


def test_what_the_package_needs_is_let_into_the_image() -> None:
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert kept[0] == "**"
    allowed = {line[1:] for line in kept if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        "emolake",
        *(link.name for link in (ROOT / "emolake").iterdir() if link.is_symlink()),
    }
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    assert allowed == packages | files | {"pyproject.toml", "constraints.txt"}


def test_the_launcher_file_is_what_ray_takes() -> None:
    told = yaml.safe_load((ROOT / "infra" / "ray-cluster-aws.yaml").read_text())
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(told, json.loads(schema.read_text()))
    assert told["head_node_type"] in told["available_node_types"]
    workers = [t for name, t in told["available_node_types"].items() if name != "head"]
    assert sum(t["max_workers"] for t in workers) == told["max_workers"]
    assert "--dashboard-host=127.0.0.1" in " ".join(told["head_start_ray_commands"])
