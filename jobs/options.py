"""The tree of options as a user fills it: a file, the environment, options and --set, each winning over
those before."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from emolake.pipeline.config import Config, all_keys, mistake, read_yaml, unknown
from emolake.pipeline.errors import UserError

PREFIX = "EMOLAKE_"
TRACEBACK = "EMOLAKE_TRACEBACK"
"""Set, a failure that is no mistake of the user's shows where it came from."""
_OF_A_SERVICE = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT=\w+://.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*)"
)
"""What Kubernetes puts into a pod's environment of a Service that is called emolake, or emolake-..."""


def load_config(file: Path | None, settings: Iterable[str] = (), **named: str | None) -> Config:
    """Defaults, then `file` (YAML), then EMOLAKE_<KEY>, then `named` options, then key=value settings.

    A dot in a key is `__` in the environment: EMOLAKE_FACES__MIN_FACE=32. UserError names the key
    and, where one is unknown, the nearest valid one.
    """
    # It takes longer to import than all else of this module: not for a command without options.
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        InitSettingsSource,
        SettingsConfigDict,
    )

    written = read_yaml(file, "--config") if file is not None else {}
    said: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    _put_settings(said, settings)
    _check_environment()

    class Said(Config, BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix=PREFIX,
            env_nested_delimiter="__",
            env_parse_none_str="null",
            env_ignore_empty=True,
        )

        @classmethod
        def settings_customise_sources(cls, *_: Any, **__: Any) -> Any:
            return (
                InitSettingsSource(cls, said),
                EnvSettingsSource(cls),
                InitSettingsSource(cls, written),
            )

    try:
        return Config.model_validate(dict(Said()))
    except ValidationError as error:
        raise mistake(Config, error, str(file) if file else "configuration") from None


def _check_environment() -> None:
    """A variable of ours that names no option is a mistake, unless Kubernetes has put it there."""
    keys = {PREFIX + key.upper().replace(".", "__") for key in all_keys(Config)} | {TRACEBACK}
    for name, value in sorted(os.environ.items()):
        rest = name.removeprefix(PREFIX)
        if rest == name or name.upper() in keys:
            continue
        if not _OF_A_SERVICE.fullmatch(f"{rest}={value}"):
            raise UserError(f"{name}: {unknown(Config, rest.lower().replace('__', '.'))}")


def read_tree(file: Path, settings: Iterable[str]) -> dict[str, Any]:
    """A YAML file with key=value settings laid over it, not validated yet."""
    tree = read_yaml(file, "--config")
    _put_settings(tree, settings)
    return tree


def _put_settings(tree: dict[str, Any], settings: Iterable[str]) -> None:
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(
                f"--set {setting!r} is not key=value; write for example faces.min_face=32"
            )
        _put(tree, key.strip(), value, source="--set")


def _put(tree: dict[str, Any], key: str, value: str, source: str) -> None:
    """Sets one value; the parts of a key name keys and, within lists, positions."""
    *folders, leaf = key.split(".")
    node: dict[str, Any] | list[Any] = tree
    for folder in folders:
        below = node.setdefault(folder, {}) if isinstance(node, dict) else _item(node, folder)
        if not isinstance(below, dict | list):
            raise UserError(f"{source}: {key!r} goes through {folder!r}, which is a value")
        node = below
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    if isinstance(node, dict):
        node[leaf] = read
    elif _item(node, leaf) is not None:
        node[int(leaf)] = read
    else:
        raise UserError(f"{source}: {key!r}: the list has no item {leaf!r}")


def _item(items: list[Any], position: str) -> Any:
    return items[int(position)] if position.isdigit() and int(position) < len(items) else None
