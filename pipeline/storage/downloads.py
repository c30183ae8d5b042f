"""Files of the net by their address, in this machine's cache beside the hub's; by huggingface_hub's own
client, which goes on where a body broke off or stalled. No token goes along."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.storage.files import PARTIAL_SUFFIX
from emolake.pipeline.storage.hub import no_bars_in_files


def is_address(place: str) -> bool:
    return place.startswith(("https://", "http://"))


def cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "emolake"


def sizes(url: str) -> tuple[int, int]:
    """Bytes of a file, and how many of them are not here; UserError where nobody tells."""
    target = _kept(url)
    if target.exists():
        return target.stat().st_size, 0
    with _telling(url):
        size = _size(url)
    return size, size


def downloaded(url: str) -> Path:
    """The file, whole; UserError in one line."""
    from huggingface_hub.file_download import http_get

    target = _kept(url)
    if target.exists():
        return target
    partial = target.with_name(f"{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    with _telling(url):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as out:
                http_get(url, out, expected_size=_size(url), displayed_filename=target.name)
            partial.replace(target)  # whoever is last: they hold the same
        finally:
            partial.unlink(missing_ok=True)
    return target


def _kept(url: str) -> Path:
    """An address has a place of its own, whatever the last part of its name."""
    name = Path(unquote(urlsplit(url).path)).name
    if not name:
        raise UserError(f"{_shown(url)} names no file")
    return cache() / hashlib.sha256(url.encode()).hexdigest()[:16] / name[-100:]


def _size(url: str) -> int:
    from huggingface_hub import get_session

    answer = get_session().head(
        url, follow_redirects=True, timeout=30, headers={"Accept-Encoding": "identity"}
    )
    answer.raise_for_status()
    return int(answer.headers["Content-Length"])


def _shown(url: str) -> str:
    """Without what may be secret of it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


@contextmanager
def _telling(url: str) -> Iterator[None]:
    no_bars_in_files()
    try:
        yield
    except UserError:
        raise
    except KeyError:
        raise UserError(
            f"{_shown(url)} cannot be fetched: its server does not tell how large it is"
        ) from None
    except Exception as error:  # the library's, its client's and the file system's own kinds
        told = in_a_line(error, 200).replace(url, _shown(url))
        raise UserError(f"{_shown(url)} cannot be fetched: {told}") from None
