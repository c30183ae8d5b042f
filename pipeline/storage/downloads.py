"""Files of the net by their address, in this machine's cache beside the hub's; by huggingface_hub's own
client, which goes on where a body broke off. No token goes along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.storage.files import PARTIAL_SUFFIX


def is_address(place: str) -> bool:
    return place.startswith(("https://", "http://"))


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "emolake"


def sizes(url: str) -> tuple[int, int]:
    """Bytes of a file, and how many of them are not here; UserError where nobody tells."""
    target = _kept(url)
    if target.exists():
        return target.stat().st_size, 0
    size, partial = _size(url), _partial(target)
    return size, size - (partial.stat().st_size if partial.exists() else 0)


def downloaded(url: str) -> Path:
    """The file, fetched once a machine, whoever asks at the same time; UserError in one line."""
    from filelock import FileLock
    from huggingface_hub.file_download import http_get

    target = _kept(url)
    partial = _partial(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        with _telling(url), partial.open("ab") as out:
            http_get(url, out, resume_size=out.tell(), expected_size=_size(url))
        return partial.rename(target)


def _kept(url: str) -> Path:
    return cache_folder() / url.rpartition("/")[2]


def _partial(target: Path) -> Path:
    return target.with_name(target.name + PARTIAL_SUFFIX)


def _size(url: str) -> int:
    from huggingface_hub import get_hf_file_metadata

    with _telling(url):
        size = get_hf_file_metadata(url, token=False).size
    if size is None:
        raise UserError(f"{url} cannot be fetched: its server does not tell how large it is")
    return size


@contextmanager
def _telling(url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library's, its client's and the file system's own kinds
        raise UserError(
            f"{url} cannot be fetched: {in_a_line(error, 200)}; the same command goes on where it broke off"
        ) from None
