"""Kustomize's part that infra/kubernetes uses, without kubectl: resources, components, JSON patches and
deletions, replacements and generated ConfigMaps. Where kubectl is there, a test holds it to that."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize FOLDER` prints, in no order that matters."""
    made: list[Manifest] = []
    _accumulate(folder, made)
    return made


def _accumulate(folder: Path, made: list[Manifest]) -> None:
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(said) - {
        *("apiVersion", "kind", "namespace", "resources", "components", "patches"),
        *("replacements", "configMapGenerator"),
    }
    assert not unknown, f"{folder}: {unknown} is not rendered here"
    for name in said.get("resources", ()):
        if (folder / name).is_dir():
            _accumulate(folder / name, made)
        else:
            made += [m for m in yaml.safe_load_all((folder / name).read_text()) if m]
    for name in said.get("components", ()):
        _accumulate(folder / name, made)
    for map_ in said.get("configMapGenerator", ()):
        data = {name: (folder / name).read_text() for name in map_["files"]}
        named = {"name": map_["name"], "namespace": map_["namespace"]}
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": data})
    for patch in said.get("patches", ()):
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
        _patch(made, patch["target"], yaml.safe_load(text))
    for replacement in said.get("replacements", ()):
        (source,) = _selected(made, replacement["source"])
        value = _at(source, replacement["source"]["fieldPath"])
        for target in replacement["targets"]:
            for chosen in _selected(made, target["select"]):
                for path in target["fieldPaths"]:
                    *folders, leaf = path.split(".")
                    _at(chosen, ".".join(folders))[leaf] = copy.deepcopy(value)


def _selected(made: list[Manifest], by: dict[str, str]) -> list[Manifest]:
    return [
        m
        for m in made
        if re.fullmatch(by["kind"], m["kind"]) and re.fullmatch(by["name"], m["metadata"]["name"])
    ]


def _patch(made: list[Manifest], target: dict[str, str], patch: Any) -> None:
    chosen = _selected(made, target)
    assert chosen, f"no manifest is {target}"
    for manifest in chosen:
        at = next(k for k, m in enumerate(made) if m is manifest)
        if isinstance(patch, list):
            made[at] = jsonpatch.apply_patch(manifest, patch)
        else:
            assert patch["$patch"] == "delete", "merge patches are not rendered here"
            del made[at]


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree[name]
    return tree
