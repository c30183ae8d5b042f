"""Models of a hub by name: `org/name`, or `org/name@revision`. Cache, token, endpoint and offline switch are
huggingface_hub's own (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).

Of a repository come its configuration, tokenizers, card and safetensors (where it has none, torch's files,
which are read as weights alone); nothing in a folder below, and no code.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
Part = Literal["model", "published", "tokenizer"]
"""What is taken of a repository: a model's files; torch's of any name too, as systems were published that are
converted first; or what a tokenizer is read from."""


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


def fetched(name: str, part: Part = "model") -> Path:
    """The folder of a hub name in this machine's cache, filled where it was not: once a machine, whoever asks
    at the same time. UserError in one line where the hub has no such model, or does not give it."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is no name of a hub; write org/name or org/name@revision")
    repo, revision = match["repo"], match["revision"]
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    if _COMMIT.fullmatch(revision or ""):
        # What a commit holds stands still: a machine that has all of it asks nobody.
        with suppress(LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
            return _cached(repo, revision, part, known=True)
    return _from_hub(repo, revision, part)


def _cached(repo: str, revision: str | None, part: Part, *, known: bool = False) -> Path:
    """The folder in the cache, with all of the part; known: only where it is known what that is."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        there = get_cached_repo_tree(repo, revision=revision)
        wanted = _wanted([file.path for file in there], part)
    except CachedRepoTreeNotFoundError:
        if known:
            raise
        wanted = [f"*{end}" for end in (*_DESCRIBING, ".safetensors")]
    return Path(
        snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=wanted,
            ignore_patterns=["*/*"],
        )
    )  # fmt: skip


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


class _Away(UserError):
    """The hub gives nothing now; what the cache holds may serve."""


def _from_hub(repo: str, revision: str | None, part: Part) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        with _telling(repo, revision):
            found = _listed(repo, revision, part)
            _make_room(repo, found.missing)
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=found.wanted))
    except _Away:
        with suppress(errors.LocalEntryNotFoundError):
            return _cached(repo, revision, part)  # as the hub last told it
        raise
    # Somebody may have published a commit since it was listed.
    return folder if folder.name == found.commit else _from_hub(repo, revision, part)


def sizes(name: str, part: Part) -> tuple[int, int]:
    """Bytes that a hub has of it, and how many of them are not in this machine's cache. UserError as
    `fetched`; while the hub is away, all of it counts as being here."""
    repo, _, revision = name.partition("@")
    try:
        with _telling(repo, revision or None):
            found = _listed(repo, revision or None, part)
    except _Away:
        folder = fetched(name, part)
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()), 0
    return found.size, found.missing


@dataclass(frozen=True)
class _Listed:
    commit: str | None
    wanted: list[str]
    size: int
    missing: int


def _listed(repo: str, revision: str | None, part: Part) -> _Listed:
    from huggingface_hub import HfApi, snapshot_download

    no_bars_in_files()
    info = HfApi().model_info(repo, revision=revision)
    wanted = _wanted([file.rfilename for file in info.siblings or ()], part)
    if part == "model" and not any(map(_is_weights, wanted)):
        raise UserError(f"model {repo} of {_where()} has no weights as safetensors")
    files = snapshot_download(repo, revision=revision, allow_patterns=wanted, dry_run=True)
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    return _Listed(info.sha, wanted, sum(file.file_size or 0 for file in files), missing)


def no_bars_in_files() -> None:
    """The library shows progress on standard error, whatever that is."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _where() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextmanager
def _telling(repo: str, revision: str | None) -> Iterator[None]:
    """UserError in one line for whatever the library raises."""
    from huggingface_hub import constants, errors

    where = _where()
    try:
        yield
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
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        offline = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else in_a_line(error, 200)
        raise _Away(
            f"model {repo} is not in the cache ({constants.HF_HUB_CACHE}), and {offline}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # the library's, its client's and the file system's own kinds
        raise _Away(
            f"model {repo} cannot be fetched from {where}: {in_a_line(error, 200)}; the same command goes on "
            "where it broke off"
        ) from None


def _is_weights(name: str) -> bool:
    return bool(_SAFE.fullmatch(name) or _TORCH.fullmatch(name))


def _wanted(names: Iterable[str], part: Part) -> list[str]:
    """Of a repository's files those that are read."""
    own = [name for name in names if "/" not in name]
    describing = [name for name in own if name.endswith(_DESCRIBING)]
    if part == "tokenizer":
        return describing
    safe = {name: found[1] for name in own if (found := _SAFE.fullmatch(name))}
    if part == "model":
        return describing + (list(safe) or [name for name in own if _TORCH.fullmatch(name)])

    def again(name: str) -> bool:
        """Whether safetensors hold the same."""
        found = _TORCH.fullmatch(name)
        return (
            found is not None and ("adapter_" if found[1] == "adapter" else None) in safe.values()
        )

    others = [name for name in own if _PUBLISHED.fullmatch(name) and not again(name)]
    return describing + list(safe) + others


def _make_room(repo: str, size: int) -> None:
    """UserError where so many bytes do not fit into the cache."""
    free, folder = room(cache())
    if size > free:
        raise UserError(
            f"model {repo} takes {size / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB left; HF_HOME "
            "names another place for the cache"
        )


def cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def room(place: Path) -> tuple[int, Path]:
    """Bytes left where `place` is or will be, and the folder of it that is there."""
    folder = place.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free, folder
