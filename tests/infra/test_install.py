"""infra/install.py: uv looks where pip would, and pip installs where uv cannot."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

INSTALL = runpy.run_path(str(ROOT / "infra" / "install.py"))
LISTED = """\
:env:.cert='/etc/ssl/mine.crt'
:env:.disable-pip-version-check='1'
global.cert='/etc/ssl/all.crt'
global.constraint='/etc/pip/constraints.txt'
global.extra-index-url='https://one/simple https://two/simple'
global.find-links='/opt/wheels\\n/mnt/wheels'
install.index-url='https://mirror/simple'
"""


def test_uv_is_told_where_pip_looks() -> None:
    assert INSTALL["of_pip"](LISTED) == {
        "SSL_CERT_FILE": "/etc/ssl/mine.crt",
        "UV_CONSTRAINT": "/etc/pip/constraints.txt",
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_FIND_LINKS": "/opt/wheels,/mnt/wheels",
        "UV_INDEX": "https://one/simple https://two/simple",
    }


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        (None, ["pip install", "pip config", "uv pip"]),
        ("uv pip", ["pip install", "pip config", "uv pip", "pip install"]),
        ("constraints.txt uv", ["pip install", "pip install"]),
    ],
)
def test_pip_installs_where_uv_cannot(monkeypatch, lacks: str | None, said: list[str]) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        words = " ".join(command)
        if "uv pip" in words:
            told = given["env"]
            assert told["UV_CONSTRAINT"] == "constraints.txt /etc/pip/constraints.txt"
            assert told["PATH"] == os.environ["PATH"]
        fails = lacks is not None and lacks in words
        return subprocess.CompletedProcess(command, int(fails), LISTED, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert INSTALL["main"](".[demo]") == 0
    assert [" ".join(command[2:4]) for command in asked] == said
    assert all(command[0] == sys.executable for command in asked)
    assert asked[-1][-2:] == ["--editable", ".[demo]"]
