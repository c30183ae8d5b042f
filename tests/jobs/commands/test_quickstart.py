"""What a newcomer types, typed: the quickstart, the tour, and every command line in the docs."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import requests
from nbclient import NotebookClient

from emolake.jobs.parser import make_parser
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone in which `make` has installed already."""
    venv = ROOT / ".venv"
    if not (venv / "bin" / "emolake").exists():
        pytest.skip("make has not installed into .venv here")
    folder = tmp_path_factory.mktemp("clone")
    (folder / ".venv").mkdir()
    names = (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "emolake",
        "pipeline",
        "actors",
        "jobs",
    )
    for name in (*names, ".venv/bin", ".venv/lib", ".venv/pyvenv.cfg"):
        (folder / name).symlink_to(ROOT / name)
    # Newer than pyproject.toml: make must not install anew, through the links, into the real one.
    (folder / ".venv" / ".installed").touch()
    return folder


def typed(block: str, where: Path, timeout_s: float = 240) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    environment["BROWSER"] = "echo opened %s"
    done = subprocess.run(
        ["bash", "-e", "-c", block],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answer_all(
    block: str, where: Path, sees: Callable[[dict[str, Any]], str] = lambda _: "happiness"
) -> int:
    """What a reviewer does who sees this in each window, until nothing is left; how often."""
    environment = os.environ | {"BROWSER": "echo opened %s"}
    process = subprocess.Popen(
        ["bash", "-e", "-c", f"exec {block.strip().splitlines()[-1]}"], cwd=where, text=True,
        env=environment | {"PATH": f"{where}/.venv/bin:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        address, token = process.stdout.readline().strip().split("/?")
        opened = Path(process.stdout.readline().strip().removeprefix("opened file://"))
        assert f"{address}/review?{token}" in opened.read_text()
        session = requests.Session()
        session.get(f"{address}/?{token}", timeout=60)
        answers = 0
        while item := session.get(f"{address}/api/next", timeout=60).json()["item"]:
            key = {name: item[name] for name in ("video_id", "segment", "track_id", "window")}
            told = {"kind": "emotion", "label": sees(item), "queue": {"queue": "random"}}
            assert session.post(f"{address}/api/say", json=key | told, timeout=60).ok
            answers += 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        return answers
    finally:
        process.kill()


def test_the_readme_leads_from_clone_to_report_in_two_commands(clone: Path) -> None:
    first = blocks(ROOT / "README.md")[0]
    assert len(first.strip().splitlines()) == 2
    told = typed(first, clone)
    assert "opened" in told
    assert all(f" {seen} " in told for seen in ("neutral", "surprise", "anger", "happiness"))
    assert "<svg" in (clone / "demo" / "report.html").read_text()


def test_the_quickstart_runs_word_by_word(clone: Path) -> None:
    look, ask, view, measure, own = blocks(ROOT / "docs" / "quickstart.md")
    assert "opened" in typed(look, clone)
    typed(ask, clone)
    assert (clone / "drawn.mp4").stat().st_size > 10_000
    assert "happiness" in (clone / "portrait.csv").read_text()
    assert answer_all(view, clone) >= 4
    told = typed(measure, clone)
    assert "happiness" in (clone / "labels.csv").read_text()
    assert re.search(r"happiness +\S+ % +100\.0 %", told), told
    told = typed(own, clone)
    assert "nothing was left to do" in told
    assert (clone / "report.html").exists()


def test_the_tour_runs(demo_output: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "output").symlink_to(demo_output)
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep it without outputs"
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    done = client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    pictures = [
        output
        for cell in done.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3


COMMANDS = [
    pytest.param(line, id=f"{page.name}: {line[:60]}")
    for page in PAGES
    for block in blocks(page)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("emolake ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_in_the_documentation_parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[: words.index("&")] if "&" in words else words
    make_parser().parse_args(words[1:])
