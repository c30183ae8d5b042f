"""Models of a hub by name: `org/name`, or `org/name@revision`. Cache, token, endpoint and offline switch are
huggingface_hub's own (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).

Of a repository come its configuration, tokenizers, card and safetensors (where it has none, torch's files,
which are read as weights alone); nothing in a folder below, and no code.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from emolake.pipeline.errors import UserError, in_a_line

_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DESCRIBING = (".json", ".txt", ".model", ".md")
_SAFE = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors")
_TORCH = re.compile(r"(pytorch|adapter)_model(-\d+-of-\d+)?\.bin")
_PUBLISHED = re.compile(r".+\.(bin|pth|pt)")
_FILES = (".yaml", ".yml", ".onnx", ".safetensors", ".bin", ".pth", ".pt", ".json")
_SHOWN = 12  # hex digits of a commit


def is_hub_name(name: str) -> bool:
    """Whether it may be one; a name that ends as files do is a file's."""
    return _NAME.fullmatch(name) is not None and not name.endswith(_FILES)


def is_pinned(name: str) -> bool:
    return _COMMIT.fullmatch(name.partition("@")[2]) is not None


def pinned(name: str) -> str:
    """`org/name@commit`: what every node has to fetch, whatever the hub tells it later. The model is in this
    machine's cache then."""
    if not is_hub_name(name):
        return name
    return f"{name.partition('@')[0]}@{fetched(name).name}"


def fetched(name: str, *, published: bool = False) -> Path:
    """The folder of a hub name in this machine's cache, filled where it was not: once a machine, whoever asks
    at the same time. UserError in one line where the hub has no such model, or does not give it.

    published: torch's files of any name too, as systems were published that are converted first.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is no name of a hub; write org/name or org/name@revision")
    repo, revision = match["repo"], match["revision"]
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    if _COMMIT.fullmatch(revision or "") and not published:
        # What a commit holds stands still: a machine that has all of it asks nobody.
        with suppress(LocalEntryNotFoundError):
            folder = _cached(repo, revision)
            listed = folder.parent.parent / "trees" / f"{folder.name}.json"
            if listed.exists() and any(_is_weights(path.name) for path in folder.iterdir()):
                return folder
    return _from_hub(repo, revision, published)


def _cached(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    parts = [f"*{end}" for end in (*_DESCRIBING, ".safetensors")]
    return Path(
        snapshot_download(
            repo,
            revision=revision,
            local_files_only=True,
            allow_patterns=parts,
            ignore_patterns=["*/*", "model.*-*"],  # such as model.fp32-00001-of-00002.safetensors
        )
    )


def commit_of(folder: Path) -> str | None:
    """The commit of a hub's model by its folder in the cache; None for any other folder."""
    return folder.name[:_SHOWN] if _in_cache(folder) else None


def plain_name(folder: Path) -> str:
    """What a model is called by its folder: a hub's by its name there."""
    if _in_cache(folder):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.resolve().name


def _in_cache(folder: Path) -> bool:
    """huggingface_hub's layout: models--ORG--NAME/snapshots/COMMIT."""
    return (
        folder.parent.name == "snapshots"
        and folder.parent.parent.name.startswith("models--")
        and _COMMIT.fullmatch(folder.name) is not None
    )


def _from_hub(repo: str, revision: str | None, published: bool) -> Path:
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    where = constants.ENDPOINT
    try:
        try:
            info = HfApi().model_info(repo, revision=revision)
        except errors.OfflineModeIsEnabled:
            return _cached(repo, revision)
        wanted = _wanted([file.rfilename for file in info.siblings or ()], published)
        if not any(map(_is_weights, wanted)) and not published:
            raise UserError(f"model {repo} of {where} has no weights as safetensors")
        listed = snapshot_download(repo, revision=revision, allow_patterns=wanted, dry_run=True)
        missing = sum(file.file_size or 0 for file in listed if file.will_download)
        _make_room(repo, missing, Path(constants.HF_HUB_CACHE))
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
        # Somebody may have published a commit since it was listed.
        return folder if folder.name == info.sha else _from_hub(repo, revision, published)
    except errors.GatedRepoError:
        raise UserError(
            f"model {repo} of {where} is gated: accept its terms at {where}/{repo} and give a token of yours "
            "(HF_TOKEN, or `hf auth login`)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{where} has no model {repo}, or shows it to nobody without a token (HF_TOKEN); there is no "
            "folder of that name on this machine either"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"model {repo} of {where} has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else in_a_line(error, 200)
        raise UserError(
            f"model {repo} is not in the cache ({constants.HF_HUB_CACHE}), and {offline}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # the library's, its client's and the file system's own kinds
        with suppress(errors.LocalEntryNotFoundError):
            return _cached(repo, revision)  # as the hub last told it
        raise UserError(
            f"model {repo} cannot be fetched from {where}: {in_a_line(error, 200)}; the same command goes on "
            "where it broke off"
        ) from None


def _is_weights(name: str) -> bool:
    return bool(_SAFE.fullmatch(name) or _TORCH.fullmatch(name))


def _wanted(names: Iterable[str], published: bool) -> list[str]:
    """Of a repository's files those that a model is read from."""
    own = [name for name in names if "/" not in name]
    safe = any(map(_SAFE.fullmatch, own))
    weights = _PUBLISHED if published else _SAFE if safe else _TORCH
    return [
        name
        for name in own
        if name.endswith(_DESCRIBING) or _SAFE.fullmatch(name) or weights.fullmatch(name)
    ]


def _make_room(repo: str, size: int, cache: Path) -> None:
    """UserError where so many bytes do not fit."""
    folder = cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"model {repo} takes {size / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB left; HF_HOME "
            "names another place for the cache"
        )
