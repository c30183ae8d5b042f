"""Erasing videos: every row that tells of them, crash-safe, and a record that does not say which they were.

A record of `_forgotten/` holds a salt and the salted hashes of the uris: enough to know one again when it
is met, and no list of names. It is written first, as begun; whoever takes the output over finds it and
takes out what the one that died had left.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from emolake.pipeline.lake.layout import FORGOTTEN, RUNS, Lake
from emolake.pipeline.storage.files import write_whole

_ERASED = "(forgotten)"


@dataclass(frozen=True)
class Record:
    """What is kept of an erasure. rows: how many went, by table; None while it goes on."""

    id: str
    begun_at: str
    salt: str
    hashes: tuple[str, ...]
    rows: dict[str, int] | None = None
    finished_at: str | None = None

    def holds(self, uri: str) -> bool:
        return _hash(self.salt, uri) in self.hashes


class Forgotten:
    """All that an output is to forget."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def __bool__(self) -> bool:
        return bool(self.records)

    def __contains__(self, uri: object) -> bool:
        return any(record.holds(str(uri)) for record in self.records)

    @classmethod
    def of(cls, lake: Lake) -> Forgotten:
        lake.fs.invalidate_cache()
        try:
            paths = lake.fs.ls(lake.path(FORGOTTEN), detail=False)
        except FileNotFoundError:
            return cls([])
        told = [json.loads(lake.fs.cat_file(p)) for p in sorted(paths) if p.endswith(".json")]
        return cls([Record(**record | {"hashes": tuple(record["hashes"])}) for record in told])


def begin(lake: Lake, uris: Collection[str]) -> Record:
    """From here on whoever has the output knows that these are to go."""
    salt = secrets.token_hex(16)
    record = Record(
        id=secrets.token_hex(8),
        begun_at=_now(),
        salt=salt,
        hashes=tuple(sorted(_hash(salt, uri) for uri in uris)),
    )
    _write(lake, record)
    return record


def finish(lake: Lake, record: Record, rows: dict[str, int]) -> Record:
    record = replace(record, rows=rows, finished_at=_now())
    _write(lake, record)
    return record


def remember(lake: Lake, uris: Collection[str]) -> None:
    """Takes videos off the records: they are to be annotated after all."""
    for record in Forgotten.of(lake).records:
        back = {_hash(record.salt, uri) for uri in uris}
        if back & set(record.hashes):
            _write(lake, replace(record, hashes=tuple(h for h in record.hashes if h not in back)))


def blacken_runs(lake: Lake, uris: Collection[str]) -> None:
    """Takes the uris out of what run records quote, such as errors."""
    told = sorted((json.dumps(uri)[1:-1] for uri in uris), key=len, reverse=True)
    for path in lake.fs.glob(lake.path(RUNS, "*", "run.json")):
        text = bytes(lake.fs.cat_file(path)).decode()
        blackened = text
        for uri in told:
            blackened = blackened.replace(uri, _ERASED)
        if blackened != text:
            write_whole(lake.fs, path, blackened.encode())


def _write(lake: Lake, record: Record) -> None:
    data = json.dumps(asdict(record), indent=2).encode()
    write_whole(lake.fs, lake.path(FORGOTTEN, f"{record.id}.json"), data)


def _hash(salt: str, uri: str) -> str:
    return hashlib.sha256(f"{salt}\0{uri}".encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
