"""Files and objects by URI: one small door to fsspec, with writes that appear whole."""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from emolake.pipeline.errors import UserError
from emolake.pipeline.storage.traffic import count, count_requests

PARTIAL_SUFFIX = ".partial"
_S3 = ("s3", "s3a")
_CHAINED = re.compile(r"::[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PATIENT = {"retries": {"mode": "standard", "max_attempts": 8}}
"""botocore's retries with backoff and jitter, a few more than its own three: a job of a night meets
an object store at its worst. `--storage-option config_kwargs...` replaces them."""


@dataclass(frozen=True)
class Storage:
    """fsspec options of one run (endpoint_url, key, ...). They may be secret: repr hides them."""

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def locate(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """File system and path of a URI; UserError where no file system can be had for it."""
        # A name may hold `::`, which fsspec takes for a chain of file systems: it is one where a URI follows.
        plain = "::" in uri and not _CHAINED.search(uri)
        protocol = "file" if plain and "://" not in uri else fsspec.utils.get_protocol(uri)
        options = {} if protocol in ("file", "local") else dict(self.options)
        if protocol in _S3:
            options = {"config_kwargs": _PATIENT} | options
        try:
            if plain:
                fs = fsspec.filesystem(protocol, **options)
                path = str(fs._strip_protocol(uri))
            else:
                fs, path = fsspec.core.url_to_fs(uri, **options)
            if protocol in _S3:
                _connect(fs, uri)
        except (ValueError, ImportError, TypeError) as error:
            raise UserError(f"{uri}: {error}") from None
        return fs, path


def _connect(fs: fsspec.AbstractFileSystem, uri: str) -> None:
    """Sends nothing yet; an unknown profile or the like shows here."""
    from botocore.exceptions import BotoCoreError

    try:
        count_requests(fs)
    except BotoCoreError as error:
        raise UserError(f"{uri}: {error}") from None


_SIGNING = re.compile(
    r"x-amz-.+|x-goog-.+|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|hdnts"
    r"|sig|se|sp|sv|sr|st|spr|sip|ss|srt|skoid|sktid|skt|ske|sks|skv",
    re.IGNORECASE,
)
_SIGNED = re.compile(r"(x-amz-signature|x-goog-signature|signature|sig|hdnts)=", re.IGNORECASE)


def unsigned(uri: str) -> str:
    """A presigned URL (of S3, Google, Azure, CloudFront, Akamai) without what signs it: the same object's
    next signature is another, and whoever holds it may read."""
    address, _, query = uri.partition("?")
    if not uri.lower().startswith(("http://", "https://")) or not _SIGNED.search(query):
        return uri
    kept = [part for part in query.split("&") if not _SIGNING.fullmatch(part.partition("=")[0])]
    return f"{address}?{'&'.join(kept)}" if kept else address


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def write_whole(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Writes a file that is never seen half: S3 PUTs are whole; elsewhere write aside and rename."""
    count(written=len(data))
    if is_local(fs):
        with _written_aside(Path(path), data) as aside:
            aside.replace(path)
    else:
        fs.pipe_file(path, data)


def create_exclusively(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    """Writes `path`, whole, only if it is not there (S3: If-None-Match); False if it is.

    A write whose answer was lost is sent again and meets itself: what is there is then ours. So
    `data` has to be unlike anybody else's.
    """
    count(written=len(data))
    for _ in range(_CONFLICTS):
        try:
            if is_local(fs):
                with _written_aside(Path(path), data) as aside:
                    os.link(aside, path)
            else:
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            try:
                return bytes(fs.cat_file(path)) == data
            except FileNotFoundError:  # it was, and has gone since
                return False
        except OSError as error:
            if not _in_conflict(error):
                raise
            # S3 answers 409 to one of two that come at once, and says nothing about who got it.
            time.sleep(random.uniform(0.05, 0.5))  # noqa: S311
            continue
        return True
    raise OSError(f"{path}: the store answers 409 to each of {_CONFLICTS} conditional writes")


def remove_all(fs: fsspec.AbstractFileSystem, paths: Iterable[str]) -> None:
    """Removes those that are there, in no order; of S3's a thousand a request."""
    paths = list(paths)
    if is_local(fs):
        for path in paths:
            Path(path).unlink(missing_ok=True)
    elif isinstance(fs, AsyncFileSystem) and not any(map(has_magic, paths)):
        for at in range(0, len(paths), _REMOVED_TOGETHER):
            with suppress(FileNotFoundError):
                fs.rm(paths[at : at + _REMOVED_TOGETHER])
    else:  # fsspec takes a name with brackets for a pattern
        for path in paths:
            with suppress(FileNotFoundError):
                fs.rm_file(path)


_REMOVED_TOGETHER = 1000
_CONFLICTS = 8


def _in_conflict(error: OSError) -> bool:
    told = getattr(error.__cause__, "response", None) or {}
    return told.get("ResponseMetadata", {}).get("HTTPStatusCode") == 409


@contextmanager
def _written_aside(file: Path, data: bytes) -> Iterator[Path]:
    """A hidden file beside `file` that holds `data`, on disk; gone afterwards if nobody moved it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs as fsspec options; dotted keys nest (client_kwargs.region_name=...)."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(
                "--storage-option is not key=value; write endpoint_url=http://host:9000"
            )
        *folders, leaf = key.split(".")
        node = options
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = {"true": True, "false": False}.get(value.lower(), value)
    return options
