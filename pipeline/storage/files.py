"""Files and objects by URI: one small door to fsspec, with writes that appear whole."""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.storage.names import is_plain, protocol_of
from emolake.pipeline.storage.traffic import count, count_requests

T = TypeVar("T")
PARTIAL_SUFFIX = ".partial"
_S3 = ("s3", "s3a")
_PATIENT = {"retries": {"mode": "standard", "max_attempts": 8}}
"""botocore's retries with backoff and jitter, a few more than its own three: a job of a night meets
an object store at its worst. `--storage-option config_kwargs...` replaces them."""


@dataclass(frozen=True)
class Storage:
    """fsspec options of one run (endpoint_url, key, ...). They may be secret: repr hides them."""

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def locate(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """File system and path of a URI; UserError where no file system can be had for it, OSError where one
        that connects at once cannot."""
        if not uri:
            raise UserError("an empty name was given for a file or folder; name one")
        protocol = protocol_of(uri)
        options = self._for(protocol)
        try:
            with os_errors():
                if is_plain(uri):
                    fs = fsspec.filesystem(protocol, **options)
                    path = str(fs._strip_protocol(uri))
                else:
                    fs, path = fsspec.core.url_to_fs(uri, **options)
                if protocol in _S3:
                    _connect(fs, uri)
        except (ValueError, ImportError, TypeError) as error:
            raise UserError(f"{in_a_line(uri)}: {in_a_line(error, 300)}") from None
        return speaking_os_errors(fs), path

    def _for(self, protocol: str) -> dict[str, Any]:
        """What of the options a protocol gets: they are those of the object store, whose secrets are nothing
        for a web server."""
        if protocol in ("file", "local"):
            return {}
        if protocol in _WEB:
            options = {k: v for k, v in self.options.items() if k in _OF_THE_WEB}
            client = self.options.get("client_kwargs", {})
            if "headers" in client:
                options["client_kwargs"] = {"headers": client["headers"]}
            return options
        patient = {"config_kwargs": _PATIENT} if protocol in _S3 else {}
        return patient | dict(self.options)


_WEB = ("http", "https")
_OF_THE_WEB = ("headers", "block_size", "encoded")


_METHODS = (
    *("info", "ls", "find", "glob", "isfile", "isdir", "open"),
    *("cat_file", "pipe_file", "rm", "rm_file"),
)
_CLIENTS = frozenset(
    {"botocore", "aiobotocore", "aiohttp", "azure", "google", "gcsfs", "requests", "urllib3"}
)
_GONE = (404, 410)


def speaking_os_errors(fs: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """The same file system, whose methods raise OSError where a store cannot be reached or refuses, though
    its client library has errors of its own; and FileNotFoundError only for what is not there."""
    if not is_local(fs) and not getattr(fs, "_speaks_os_errors", False):
        for name in _METHODS:
            setattr(fs, name, _translated(getattr(fs, name)))
        fs._speaks_os_errors = True
    return fs


def _translated(method: Callable[..., T]) -> Callable[..., T]:
    @wraps(method)
    def called(*arguments: Any, **options: Any) -> T:
        with os_errors():
            return method(*arguments, **options)

    return called


@contextmanager
def os_errors() -> Iterator[None]:
    """Errors of storage clients come out as OSError."""
    try:
        yield
    except Exception as error:
        told = as_os_error(error)
        if told is error:
            raise
        raise told from error


def as_os_error(error: Exception) -> Exception:
    """The same error, unless it is one of a storage client's own, or says of a server's failure that
    nothing is there."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError):
        # fsspec's HTTP says so of whatever a server answers; object stores' file systems know what they say.
        web = cause is not None and _of_a_client(cause, frozenset({"aiohttp"}))
        if not web or getattr(cause, "status", None) in _GONE:
            return error
        return OSError(f"{type(cause).__name__}: {in_a_line(cause, 300)}")
    if isinstance(error, OSError) or not _of_a_client(error):
        return error
    told = f"{type(error).__name__}: {in_a_line(error, 300)}"
    return FileNotFoundError(told) if getattr(error, "status", None) in _GONE else OSError(told)


_WITHOUT_CREDENTIALS = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"),
        *("SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError"),
    }
)


def wants_credentials(error: BaseException) -> bool:
    """Whether a store's client says that it has nothing to show to the store."""
    kinds = {type(error).__name__, type(error.__cause__).__name__}
    return bool(kinds & _WITHOUT_CREDENTIALS)


def _of_a_client(error: BaseException, clients: frozenset[str] = _CLIENTS) -> bool:
    return any(kind.__module__.partition(".")[0] in clients for kind in type(error).__mro__)


def _connect(fs: fsspec.AbstractFileSystem, uri: str) -> None:
    """Sends nothing yet; an unknown profile or the like shows here."""
    from botocore.exceptions import BotoCoreError

    try:
        count_requests(fs)
    except BotoCoreError as error:
        raise UserError(f"{uri}: {error}") from None


def exists(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """fsspec's own takes a store that cannot be reached for one that does not have it."""
    fs.invalidate_cache()
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


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
    elif _is_s3(fs):
        for at in range(0, len(paths), _REMOVED_TOGETHER):
            _remove_of_s3(fs, paths[at : at + _REMOVED_TOGETHER])
    else:
        _for_each(fs, partial(_remove, fs), paths)


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def contents(fs: fsspec.AbstractFileSystem, paths: list[str]) -> dict[str, bytes]:
    """Of small files, in the order of their paths."""
    return dict(zip(paths, _for_each(fs, fs.cat_file, paths), strict=True))


def _for_each(fs: fsspec.AbstractFileSystem, asks: Callable[[str], T], paths: list[str]) -> list[T]:
    """At once where that is a matter of requests. Not by fsspec's own way: it takes names for patterns."""
    if not fs.async_impl:
        return list(map(asks, paths))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(asks, paths))


def _remove_of_s3(fs: fsspec.AbstractFileSystem, paths: list[str]) -> None:
    """In one request. S3 answers well and names in its answer what it has kept; s3fs does not look."""
    keys: dict[str, list[dict[str, str]]] = {}
    for path in paths:
        bucket, key, _ = fs.split_path(path)
        keys.setdefault(bucket, []).append({"Key": key})
        fs.invalidate_cache(path)
    for bucket, named in keys.items():
        for left in reversed(range(_REMOVALS)):
            with os_errors():
                told = fs.call_s3(
                    "delete_objects", Bucket=bucket, Delete={"Objects": named, "Quiet": True}
                )
            refused = [e for e in told.get("Errors", []) if e.get("Code") != "NoSuchKey"]
            if not refused:
                break
            if not left:
                first = refused[0]
                raise OSError(f"{bucket}/{first.get('Key')} was not removed: {first.get('Code')}")
            named = [{"Key": error["Key"]} for error in refused]
            time.sleep(random.uniform(0.05, 0.5))  # noqa: S311


_REMOVALS = 3


def _is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs.protocol, tuple) and fs.protocol[0] in _S3


def unfinished_uploads(fs: fsspec.AbstractFileSystem, prefix: str) -> Iterator[tuple[str, str]]:
    """Path and id of each multipart upload below a prefix of S3 that was begun and not ended; none where a
    store does not tell."""
    if not _is_s3(fs):
        return
    bucket, key, _ = fs.split_path(prefix)
    at: dict[str, str] = {}
    while True:
        try:
            with os_errors():
                told = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/", **at)
        except OSError:
            return
        for upload in told.get("Uploads", []):
            yield f"{bucket}/{upload['Key']}", upload["UploadId"]
        if not told.get("IsTruncated"):
            return
        following = ((name, told.get(f"Next{name}")) for name in ("KeyMarker", "UploadIdMarker"))
        at = {name: marker for name, marker in following if marker}
        if not at:
            return


def abort_upload(fs: fsspec.AbstractFileSystem, path: str, upload_id: str) -> None:
    """As far as the store lets us: it is invisible, and a bucket's own rules may end it too."""
    bucket, key, _ = fs.split_path(path)
    with suppress(OSError), os_errors():
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)


_REMOVED_TOGETHER = 1000
_AT_ONCE = 16  # requests
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


_GROUPS = ("headers", "client_kwargs", "config_kwargs")
_COUNTED = re.compile("(size|blocks|timeout|time|attempts|connections|concurrency|ttl|port)$")
"""Options whose digits are a number, and no name, as of a key or a project."""


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
            if not isinstance(node, dict):
                raise UserError(f"--storage-option {folder} is given as a value and as {key}")
        if isinstance(node.get(leaf), dict):
            raise UserError(f"--storage-option {key} is given as a value and as {key}.<name>")
        if leaf in _GROUPS:
            raise UserError(f"--storage-option {key} is a group; write {key}.NAME=VALUE")
        if (
            "headers" not in folders
            and _COUNTED.search(leaf)
            and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)
        ):
            node[leaf] = float(value) if "." in value else int(value)
        else:
            node[leaf] = {"true": True, "false": False}.get(value.lower(), value)
    return options
