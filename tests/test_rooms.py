"""The tree is the flow: which room may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from emolake.jobs.parser import COMMANDS
from tests.conftest import ROOT

SHARED_BY_ALL = {"config", "errors", "labels"}


def modules(*folders: str) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield f"emolake.{name.removesuffix('.__init__')}", path


def imports(path: Path) -> set[str]:
    """Names of modules that a file imports anywhere, within functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_rooms_of_the_pipeline_import_each_other_in_no_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for name, path in modules("pipeline"):
        room = name.split(".")[2] if name.count(".") > 1 else "pipeline"
        others = {i.split(".")[2] for i in imports(path) if i.startswith("emolake.pipeline.")}
        rooms.setdefault(room, set()).update(others - {room})
    assert {room for room in rooms if not (ROOT / "pipeline" / room).is_dir()} <= {
        *SHARED_BY_ALL,
        "pipeline",
    }
    assert list(TopologicalSorter(rooms).static_order())


def test_no_module_is_in_a_circle_of_imports() -> None:
    every = dict(modules("pipeline", "actors", "jobs"))
    graph = {name: imports(path) & every.keys() - {name} for name, path in every.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_imports_point_from_jobs_to_actors_to_the_pipeline() -> None:
    for name, path in modules("pipeline", "actors"):
        told = imports(path)
        assert not any(i == "ray" or i.startswith(("ray.", "emolake.jobs")) for i in told), name
        if name.startswith("emolake.pipeline"):
            assert not any(i.startswith("emolake.actors") for i in told), name


def test_every_import_of_ours_names_the_installed_package() -> None:
    for folder in ("pipeline", "actors", "jobs", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            bare = {i for i in imports(path) if i.split(".")[0] in ("pipeline", "actors", "jobs")}
            assert not bare, path


def test_a_file_of_the_commands_is_a_command_and_each_command_has_its_file() -> None:
    files = {path.stem for path in (ROOT / "jobs" / "commands").glob("*.py")} - {"__init__"}
    assert files == COMMANDS.keys()


def test_help_starts_without_what_a_command_works_with() -> None:
    code = "import sys; from emolake.jobs.parser import make_parser; make_parser(()); print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"pydantic", "yaml", "fsspec", "numpy", "pyarrow", "ray", "torch", "av", "rich"}
    assert not heavy & set(told.stdout.split())
