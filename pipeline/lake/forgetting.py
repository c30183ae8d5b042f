"""Erasing videos: every row that tells of them, crash-safe, and a record that does not say which they were.

A record of `_forgotten/` holds a salt and the salted hashes of the uris: enough to know one again when it
is met, and no list of names. It is written first, as begun; whoever takes the output over finds it and
takes out what the one that died had left. A video that is to be annotated after all has a record too: of
what is said of a uri the word of the latest lease counts, so nobody has to change what another wrote.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from emolake.pipeline.errors import in_a_line
from emolake.pipeline.lake.layout import FORGOTTEN, Lake
from emolake.pipeline.lake.lease import Fence
from emolake.pipeline.storage.files import contents, write_whole

_ERASED = "(forgotten)"
_LONG = 200
TELLING = 8  # characters of a name
_QUOTING = ("error", "devices")
"""What of a run record may name videos."""


@dataclass(frozen=True)
class Record:
    """What is kept of an erasure, or with `remembers` of its end. lease: under which it was written; rows:
    how many went, by table; None while it goes on."""

    id: str
    begun_at: str
    salt: str
    hashes: tuple[str, ...]
    lease: int = 0
    remembers: bool = False
    rows: dict[str, int] | None = None
    finished_at: str | None = None

    @classmethod
    def of(cls, told: bytes) -> Record:
        record = json.loads(told)
        return cls(**record | {"hashes": tuple(record["hashes"])})


class Forgotten:
    """All that an output is to forget."""

    def __init__(self, records: list[Record]) -> None:
        self.salts = list(dict.fromkeys(record.salt for record in records))
        """One, unless older versions of this program wrote here."""
        self._said: dict[str, tuple[int, bool]] = {}
        for record in records:
            said = (record.lease, not record.remembers)
            for told in record.hashes:
                self._said[told] = max(said, self._said.get(told, said))

    def __bool__(self) -> bool:
        return any(forgotten for _, forgotten in self._said.values())

    def __contains__(self, uri: object) -> bool:
        said = (self._said.get(_hash(salt, str(uri)), (-1, False)) for salt in self.salts)
        return max(said, default=(-1, False))[1]

    @classmethod
    def of(cls, lake: Lake) -> Forgotten:
        lake.fs.invalidate_cache()
        try:
            paths = lake.fs.ls(lake.path(FORGOTTEN), detail=False)
        except FileNotFoundError:
            return cls([])
        told = contents(lake.fs, [path for path in sorted(paths) if path.endswith(".json")])
        return cls([Record.of(record) for record in told.values()])


def begin(lake: Lake, uris: Collection[str], fence: Fence) -> Record:
    """From here on whoever has the output knows that these are to go."""
    return _write(lake, _record(Forgotten.of(lake), uris, fence))


def finish(lake: Lake, record: Record, rows: dict[str, int]) -> Record:
    return _write(lake, replace(record, rows=rows, finished_at=_now()))


def remember(lake: Lake, uris: Collection[str], fence: Fence) -> None:
    """These are to be annotated after all."""
    forgotten = Forgotten.of(lake)
    if back := [uri for uri in uris if uri in forgotten]:
        _write(lake, replace(_record(forgotten, back, fence), remembers=True))


def _record(forgotten: Forgotten, uris: Collection[str], fence: Fence) -> Record:
    salt = forgotten.salts[0] if forgotten.salts else secrets.token_hex(16)
    hashes = tuple(sorted(_hash(salt, uri) for uri in uris))
    return Record(secrets.token_hex(8), _now(), salt, hashes, fence.number)


def blacken_runs(lake: Lake, uris: Collection[str], fence: Fence) -> None:
    """Takes the uris out of what run records quote, such as errors."""
    told = sorted(uris, key=len, reverse=True)
    for path in lake.run_records():
        fence()  # whoever has the output by now may be about to write this record
        record = json.loads(lake.fs.cat_file(path))
        blackened = {
            name: _blackened(value, told) if name in _QUOTING else value
            for name, value in record.items()
        }
        if blackened != record:
            write_whole(lake.fs, path, json.dumps(blackened, indent=2).encode())


def _blackened(value: Any, uris: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {name: _blackened(inner, uris) for name, inner in value.items()}
    if isinstance(value, list):
        return [_blackened(inner, uris) for inner in value]
    if isinstance(value, str):
        for uri in uris:
            for name in (uri, in_a_line(uri)):
                value = value.replace(name, _ERASED)
        for uri in uris:
            value = _without(uri, value)
    return value


def _without(uri: str, text: str) -> str:
    """A text in which a video is named nowhere either by the last part of its name alone (as an error of a
    URL with another's login or order of parameters tells it), or cut."""
    last = uri.rpartition("/")[2]
    if len(last) >= TELLING:
        text = text.replace(last, _ERASED)
    for name in dict.fromkeys((uri, in_a_line(uri))) if len(text) >= _LONG else ():
        at = text.find(name[:TELLING])
        while at >= 0:
            same = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(name, text[at:], strict=False)
            )
            end = at + sum(1 for _ in same)
            # What is quoted at length is cut, and something may follow; of another, it is its folder's name.
            folder = len(name) - len(name.rpartition("/")[2])
            if end == len(text) or text[end] in ";)" or (end - at > folder and text[end] == " "):
                text = text[:at] + _ERASED + text[end:]
            at = text.find(name[:TELLING], at + 1)
    return text


def _write(lake: Lake, record: Record) -> Record:
    data = json.dumps(asdict(record), indent=2).encode()
    write_whole(lake.fs, lake.path(FORGOTTEN, f"{record.id}.json"), data)
    return record


def _hash(salt: str, uri: str) -> str:
    return hashlib.sha256(f"{salt}\0{uri}".encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
