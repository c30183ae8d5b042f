"""Installs this clone into the environment that runs this: `python infra/install.py '.[demo]'`.

By uv, which takes a fifth of pip's time, where pip can bring it; else by pip. uv does not read pip's
configuration, so it is told where pip would look and what it would take.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys

_PIP = [sys.executable, "-m", "pip"]
_QUIET_PIP = [*_PIP, "install", "--quiet", "--no-compile", "--constraint", "constraints.txt"]
_UV = [
    sys.executable,
    "-m",
    "uv",
    "pip",
    "install",
    "--quiet",
    "--python",
    sys.executable,
    "--editable",
]
_UV_NAMES = {  # pip's option -> uv's variable, and what stands between several values there
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}


def of_pip(listed: str) -> dict[str, str]:
    """What `pip config list` prints -> the variables that tell uv the same."""
    sections = ("global.", "install.", ":env:.")  # each goes before the ones ahead of it
    told = {}
    for section in sections:
        for line in listed.splitlines():
            name, _, value = line.removeprefix(section).partition("=")
            if line.startswith(section) and name in _UV_NAMES:
                variable, between = _UV_NAMES[name]
                told[variable] = between.join(ast.literal_eval(value).split())
    return told


def main(target: str) -> int:
    if subprocess.run([*_QUIET_PIP, "uv"]).returncode == 0:
        listed = subprocess.run([*_PIP, "config", "list"], capture_output=True, text=True).stdout
        # pip looks everywhere and takes the newest that fits; constraints.txt says which that is.
        as_pip = {"UV_INDEX_STRATEGY": "unsafe-best-match"} | of_pip(listed)
        as_pip["UV_CONSTRAINT"] = f"constraints.txt {as_pip.get('UV_CONSTRAINT', '')}".strip()
        if subprocess.run([*_UV, target], env=as_pip | os.environ).returncode == 0:
            return 0
    print("uv cannot; pip installs instead", file=sys.stderr)
    return subprocess.run([*_QUIET_PIP, "--editable", target]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
