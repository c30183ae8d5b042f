"""What a user installs: one package, that runs among other people's modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT, read_rows

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "emolake", "pipeline", "actors", "jobs")


def run(*command: object, cwd: Path) -> str:
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=280, cwd=cwd, env=apart
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment that holds the built wheel; what it depends on, and no more, is this one's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    source = folder / "source"  # where no build of an earlier day lies
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, source)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(*pip, *build, source, cwd=folder)
    (wheel,) = folder.glob("emolake-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=folder)
    (packages,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    for name in base_install():
        for top in {file.parts[0] for file in metadata.files(name) or ()} - {".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(here / top)
    return python.parent


def base_install() -> set[str]:
    """Distributions that `pip install emolake` brings, without an extra."""
    todo: list[tuple[str, frozenset[str]]] = [("emolake", frozenset())]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for needs in map(Requirement, metadata.requires(name) or ()):
            asked = [
                needs.marker is None or needs.marker.evaluate({"extra": e}) for e in extras | {""}
            ]
            if any(asked):
                todo.append((canonicalize_name(needs.name), frozenset(needs.extras)))
    return {name for name, _ in seen} - {"emolake"}


def test_the_installed_wheel_runs_where_others_have_modules_of_the_same_names(
    installed: Path, demo_videos: Path, tmp_path: Path
) -> None:
    for name in ("pipeline", "actors", "jobs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('not our {name}')\n")
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "portrait.mp4").symlink_to(demo_videos / "portrait.mp4")
    run(installed / "emolake", "annotate", videos, "--output", "out", "--quiet", cwd=tmp_path)
    rows = read_rows(tmp_path / "out", "annotations")
    assert {Path(row["uri"]).name for row in rows} == {"portrait.mp4"}
    extra = (
        "print([m for m in ('duckdb', 'openai', 'peft', 'pyiceberg', 'skimage') if find_spec(m)])"
    )
    found = run(
        installed / "python", "-c", f"from importlib.util import find_spec; {extra}", cwd=tmp_path
    )
    assert found == "[]\n", "it was the base install that did it"
    where = "import emolake.jobs.cli as cli; print(cli.__file__)"
    assert str(installed.parent) in run(installed / "python", "-c", where, cwd=tmp_path)


def test_nothing_is_installed_outside_the_package(installed: Path) -> None:
    told = run(
        *(sys.executable, "-m", "pip", "--python", installed / "python"),
        *("show", "--files", "emolake"),
        cwd=installed,
    )
    files = [line.strip() for line in told.partition("Files:")[2].splitlines() if line.strip()]
    assert any(file.startswith("emolake/pipeline/models/embedded/") for file in files)
    for file in files:
        assert file.startswith(("emolake/", "emolake-")) or file.endswith("bin/emolake"), file


@pytest.mark.parametrize("module", ["jobs", "emolake.jobs"])
def test_in_a_checkout_the_folder_of_the_jobs_is_the_command_line(module: str) -> None:
    assert run(sys.executable, "-m", module, "--version", cwd=ROOT).startswith("emolake ")
