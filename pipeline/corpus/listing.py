"""INPUT -> the videos it names: files, folders, globs, any fsspec URI, manifests."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from emolake.pipeline.config import CORPUS_NAME
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.labels import ATTRIBUTES
from emolake.pipeline.lake.schema import LISTED_ROW
from emolake.pipeline.storage.files import Storage, is_local, os_errors, wants_credentials
from emolake.pipeline.storage.names import canonical, has_protocol, is_no_name, namer, unsigned

VIDEO_SUFFIXES = frozenset(
    {"3g2", "3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"}
    | {"mxf", "ogv", "ts", "vob", "webm", "wmv"}
)
"""What counts as a video when a folder is named; a file or glob that is named counts anyhow."""

MANIFEST_SUFFIXES = (".parquet", ".csv", ".jsonl")
_MANIFEST_COLUMNS = ("uri", "corpus", "transcript_uri", *ATTRIBUTES, "size", "etag")
_WEB = ("http://", "https://")
_STAT_THREADS = 32
_TELLING = 256  # bytes
_BEGINNING = 1 << 20
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Video:
    """One video of the input. size None and `missing` a reason where it cannot be read.

    version: the object's etag or modification time; with uri and size it makes the video_id. modified:
    when it was last written, seconds since 1970, where the storage tells.
    """

    uri: str
    size: int | None
    version: str
    corpus: str | None = None
    transcript_uri: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    missing: str | None = None
    modified: float | None = None
    signed_uri: str | None = None

    def row(self) -> dict[str, Any]:
        """schema.LISTED_ROW."""
        told = ("uri", "size", "modified", "signed_uri", "corpus", "transcript_uri", "missing")
        listed = {name: getattr(self, name) for name in told}
        return {"video_id": self.video_id} | listed | self.attributes

    @property
    def video_id(self) -> str:
        identity = "\0".join((self.uri, str(self.size), self.version))
        return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def find_videos(inputs: Iterable[str], storage: Storage) -> Iterator[pa.Table]:
    """All videos of the inputs (schema.LISTED_ROW), a few thousand at a time, in order of mention; one
    that is mentioned twice comes twice.

    UserError where an input does not exist, is empty as a glob, or is an unreadable manifest.
    """
    videos = (video for name in inputs for video in _find(name, storage))
    for some in _batches(videos):
        yield pa.Table.from_pylist([video.row() for video in some], LISTED_ROW)


def named_uris(names: Iterable[str]) -> set[str]:
    """The videos that are named one by one, there or not, as tables call them; manifests are left out."""
    return {unicode_name(canonical(name)) for name in names if not is_manifest(name)}


def uris_of_manifest(name: str, storage: Storage) -> set[str]:
    """What a manifest names, as tables call it; also as it stands there, as they called it once."""
    fs, path = storage.locate(name)
    beside = _beside(namer(name, fs)(path))
    named = {beside(str(row["uri"])) for row in read_manifest(name, fs, path)}
    return named | {canonical(uri) for uri in named} | {unsigned(uri) for uri in named}


def is_manifest(name: str) -> bool:
    return _named_file(name).endswith(MANIFEST_SUFFIXES)


def _named_file(name: str) -> str:
    return (name.partition("?")[0] if name.startswith(_WEB) else name).lower()


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    items = iter(items)
    while some := list(itertools.islice(items, _ROWS_AT_ONCE)):
        yield some


def _find(name: str, storage: Storage) -> Iterator[Video]:
    try:
        fs, path = storage.locate(name)
        if is_manifest(name):
            yield from _manifest(name, fs, path, storage)
            return
        # What exists is taken as it is called, though its name may look like a pattern.
        if not name.endswith("/") and fs.isfile(path):
            files = [fs.info(path)]
        elif (
            any(sign in path for sign in "*?[")
            and not name.startswith(_WEB)  # where `?` is no pattern
            and not fs.isdir(path)
        ):
            listing = fs.glob(path, detail=True)
            files = [info for info in listing.values() if info["type"] == "file"]
            if not files:
                raise UserError(f"{name}: no file matches; check the pattern")
        else:
            found = (
                _files_on_disk(fs, path) if is_local(fs) else fs.find(path, detail=True).values()
            )
            files = list(found)
            if not files and not fs.isdir(path):
                raise UserError(f"{name} does not exist; name a file, folder, glob or manifest")
            if name.startswith(_WEB):
                # A web server's page tells of its files their names alone: each is asked.
                uris = sorted(info["name"] for info in files if is_video_name(info["name"]))
                with ThreadPoolExecutor(_STAT_THREADS) as pool:
                    yield from pool.map(lambda uri: stat_video(uri, storage), uris)
                return
            files = _videos_of(fs, files)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be listed: {_line(error)}") from None
    named = namer(name, fs)
    for info in sorted(files, key=lambda info: str(info["name"])):
        yield _video(named(info["name"]), info)


def _files_on_disk(fs: fsspec.AbstractFileSystem, root: str) -> Iterator[dict[str, Any]]:
    """Every file below a folder once, links to folders followed after the folders themselves: what lies
    in the tree under its own name keeps that, and a circle of links ends."""
    waiting, linked, seen = [root], list[str](), set[tuple[int, int]]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop()
        there = Path(folder)
        if not there.is_dir():
            continue
        told = there.stat()
        if (told.st_dev, told.st_ino) in seen:
            continue
        seen.add((told.st_dev, told.st_ino))
        for entry in sorted(there.iterdir()):
            if entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(str(entry))
            elif entry.is_file():
                yield fs.info(str(entry))


def _videos_of(
    fs: fsspec.AbstractFileSystem, files: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of a folder's files those that count as videos."""
    named = [info for info in files if is_video_name(info["name"])]
    unclear = [info for info in named if info["name"].lower().endswith(".ts") and info["size"]]
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        answers = list(pool.map(lambda info: _is_code(fs, info["name"]), unclear))
    code = {info["name"] for info, answer in zip(unclear, answers, strict=True) if answer}
    return [info for info in named if info["name"] not in code]


def _is_code(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a `.ts` is TypeScript: it begins as text does, and no damaged transport stream so. What cannot
    be read now is a video that cannot be read."""
    try:
        begin = bytes(fs.cat_file(path, start=0, end=_TELLING)).decode("utf-8-sig", "replace")
    except OSError:
        return False
    whole = begin.rstrip("\ufffd")
    return bool(whole) and all(sign.isprintable() or sign.isspace() for sign in whole)


def is_video_name(path: str) -> bool:
    """Whether a file in a folder counts as a video."""
    name = posixpath.basename(path)
    return name.rpartition(".")[2].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def _video(opened: str, info: dict[str, Any], **extra: Any) -> Video:
    """opened: its name, with what it is opened by."""
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    uri = unsigned(opened)
    if uri != opened:
        extra["signed_uri"] = opened
    if not _is_unicode(uri):
        # Tables hold UTF-8; the file is named as well as it can be, and failed, not forgotten.
        return Video(unicode_name(uri), None, str(version), missing="not_found", **extra)
    return Video(uri, int(info["size"] or 0), str(version), modified=_modified(info), **extra)


def _modified(info: dict[str, Any]) -> float | None:
    told = info.get("mtime") or info.get("LastModified") or info.get("updated")
    if isinstance(told, str):
        try:
            told = datetime.fromisoformat(told)
        except ValueError:
            return None
    return told.timestamp() if isinstance(told, datetime) else told


def unicode_name(name: str) -> str:
    """A file's name as tables, which hold UTF-8, can tell it."""
    return name.encode("utf-8", "backslashreplace").decode()


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _manifest(
    name: str, fs: fsspec.AbstractFileSystem, path: str, storage: Storage
) -> Iterator[Video]:
    """Relative uris in a manifest are relative to the folder that holds it. Rows that tell `size` and
    `etag` are believed; every other video is looked up."""
    beside = _beside(namer(name, fs)(path))

    def extra(row: dict[str, Any]) -> dict[str, Any]:
        transcript = row.get("transcript_uri")
        return {
            "corpus": row.get("corpus"),
            "transcript_uri": beside(transcript) if transcript else None,
            "attributes": {k: str(row[k]) for k in ATTRIBUTES if row.get(k)},
        }

    def told(row: dict[str, Any]) -> Video | None:
        if not row.get("etag") or row.get("size") is None:
            return None
        named = beside(str(row["uri"]))
        uri = canonical(named)
        # Object stores tell etags in quotes, but Google's, and inventories of theirs do not.
        etag = str(row["etag"]).strip('"')
        version = f'"{etag}"' if "://" in uri and not uri.startswith("gs://") else etag
        signed = named if unsigned(named) != named else None
        return Video(uri, int(row["size"]), version, signed_uri=signed, **extra(row))

    def looked_up(row: dict[str, Any]) -> Video:
        return stat_video(beside(str(row["uri"])), storage, **extra(row))

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        for rows in _batches(read_manifest(name, fs, path)):
            videos = [told(row) for row in rows]
            others = (row for row, video in zip(rows, videos, strict=True) if video is None)
            answers = pool.map(looked_up, others)
            yield from (video or next(answers) for video in videos)


def _beside(manifest: str) -> Callable[[str], str]:
    """What a manifest means by a uri. An absolute path is one of this machine, wherever the manifest lies;
    in a web server's it is one of that server."""
    web = manifest.startswith(_WEB)
    protocol, sign, path = (manifest.partition("?")[0] if web else manifest).rpartition("://")
    folder = posixpath.dirname(path)

    def beside(uri: str) -> str:
        if "://" in uri:
            return uri
        if uri.startswith("/"):
            return protocol + sign + path.partition("/")[0] + uri if web else uri
        return protocol + sign + posixpath.normpath(posixpath.join(folder, uri))

    return beside


def stat_video(uri: str, storage: Storage, **extra: Any) -> Video:
    """A named video; where it cannot be reached its `missing` says why. UserError where no storage of that
    kind can be had."""
    named = canonical(uri)
    try:
        if is_no_name(uri) or not has_protocol(uri):
            return Video(named, None, "", missing="not_found", **extra)
        fs, path = storage.locate(uri)
        info = fs.info(path)
    except (FileNotFoundError, ValueError):  # ValueError: no name at all for a file
        return Video(named, None, "", missing="not_found", **extra)
    except OSError as error:
        if wants_credentials(error):
            raise UserError(f"{in_a_line(uri)}: {in_a_line(error, 300)}") from None
        return Video(named, None, "", missing="storage_error", **extra)
    if info["type"] != "file":
        return Video(named, None, "", missing="not_found", **extra)
    return _video(namer(uri, fs)(info["name"]), info, **extra)


def read_manifest(name: str, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[dict[str, Any]]:
    """Rows with `uri` and the optional columns that are there, read as they are asked for; UserError
    where it is malformed."""
    kind = _named_file(name).rpartition(".")[2]
    rows = {"parquet": _parquet_rows, "csv": _csv_rows, "jsonl": _json_rows}[kind]
    try:
        with os_errors(), fs.open(path, "rb") as stream:
            for number, row in enumerate(rows(stream), 1):
                _demand_uri(row)
                _check_row(f"manifest {name}: row {number}", row)
                yield row
    except LookupError as error:
        raise UserError(f"manifest {name} {error.args[0]}") from None
    except FileNotFoundError:
        raise UserError(f"manifest {name} does not exist") from None
    except (ValueError, RecursionError) as error:  # pa.ArrowInvalid and JSON's are ValueErrors
        raise UserError(f"manifest {name} is malformed: {_line(error)}") from None
    except OSError as error:
        raise UserError(f"manifest {name} cannot be read: {_line(error)}") from None


def _check_row(where: str, row: dict[str, Any]) -> None:
    """UserError for what would only show when the video is done, or be written where nobody looks."""
    if row["uri"] is None:
        raise UserError(f"{where} has no uri")
    for name in _MANIFEST_COLUMNS:
        if not _is_unicode(str(row.get(name))):
            raise UserError(f"{where}: {name} {row[name]!r} is no Unicode")
    for name in ("uri", "corpus", "transcript_uri"):
        if not isinstance(row.get(name), str | None):
            raise UserError(f"{where}: {name} {row[name]!r} is no text")
    corpus, size = row.get("corpus"), row.get("size")
    if corpus is not None and not re.fullmatch(CORPUS_NAME, corpus):
        raise UserError(
            f"{where}: corpus {corpus!r} may hold letters, digits, '.', '_' and '-' only, 200 at most"
        )
    if size is not None and not (isinstance(size, int) and 0 <= size < 1 << 63):
        raise UserError(f"{where}: size {size!r} is no number of bytes")


def _demand_uri(columns: Collection[str]) -> None:
    """LookupError, in words, where the column `uri` is not among them."""
    if "uri" not in columns:
        raise LookupError(f"has no column 'uri'; its columns: {', '.join(columns) or 'none'}")


def _parquet_rows(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(stream)
    _demand_uri(file.schema_arrow.names)
    wanted = [c for c in _MANIFEST_COLUMNS if c in file.schema_arrow.names]
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted):
        yield from batch.to_pylist()


def _csv_rows(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    text = {name: pa.int64() if name == "size" else pa.string() for name in _MANIFEST_COLUMNS}
    # Of other people's columns the kind would be guessed by their beginning.
    beginning = stream.read(_BEGINNING)
    names = pyarrow.csv.open_csv(
        io.BytesIO(beginning),
        parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=lambda _: "skip"),
    ).schema.names
    _demand_uri(names)
    header = [name for name in names if name in text]
    if twice := [name for name in header if header.count(name) > 1]:
        raise LookupError(f"has two columns {twice[0]!r}")
    try:
        stream.seek(0)
    except (ValueError, OSError):  # of a web server that cannot send parts
        stream = io.BytesIO(beginning + stream.read())
    options = pyarrow.csv.ConvertOptions(
        column_types=text,
        strings_can_be_null=True,
        null_values=[""],
        include_columns=header,
    )
    reader = pyarrow.csv.open_csv(stream, convert_options=options)
    for batch in reader:
        yield from batch.to_pylist()


def _json_rows(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")
        yield row


def _line(error: Exception) -> str:
    return in_a_line(error, 300) or type(error).__name__
