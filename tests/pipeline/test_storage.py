"""Conditional creates as object stores answer them."""

from typing import Any

import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs.errors import translate_boto_error

from emolake.pipeline.storage import files
from emolake.pipeline.storage.files import create_exclusively


def refusal(code: str, status: int) -> OSError:
    """As s3fs raises what S3 answers."""
    told = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    cause = ClientError(told, "PutObject")  # type: ignore[arg-type]
    error: OSError = translate_boto_error(cause)
    error.__cause__ = cause
    return error


class Answering(MemoryFileSystem):
    """Answers the first writes as told."""

    def __init__(self, *answers: OSError, takes_effect: bool = False) -> None:
        super().__init__(skip_instance_cache=True)
        self.answers, self.takes_effect = list(answers), takes_effect

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if self.answers:
            if self.takes_effect:
                super().pipe_file(path, value, mode=mode)
            raise self.answers.pop(0)
        super().pipe_file(path, value, mode=mode)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    monkeypatch.setattr(MemoryFileSystem, "store", {})


def test_a_conflict_of_two_writes_is_asked_again() -> None:
    conflict = refusal("ConditionalRequestConflict", 409)
    assert create_exclusively(Answering(conflict, conflict), "/a", b"mine")
    assert not create_exclusively(Answering(conflict), "/a", b"theirs")
    with pytest.raises(OSError, match="answers 409 to each"):
        create_exclusively(Answering(*[conflict] * 50), "/b", b"mine")


def test_what_took_effect_though_its_answer_was_lost_is_ours() -> None:
    refused = FileExistsError("412")
    assert create_exclusively(Answering(refused, takes_effect=True), "/a", b"mine")


def test_other_refusals_are_raised() -> None:
    with pytest.raises(PermissionError):
        create_exclusively(Answering(refusal("AccessDenied", 403)), "/a", b"mine")


def test_names_with_signs_of_patterns_are_removed_as_they_are_called(s3: Any) -> None:
    fs = s3.fs()
    for name in ("a[1].bin", "a1.bin", "plain.bin"):
        fs.pipe_file(f"{s3.bucket}/gone/{name}", b"x")
    gone = [f"{s3.bucket}/gone/{name}" for name in ("a[1].bin", "plain.bin", "never.bin")]
    files.remove_all(fs, gone)
    fs.invalidate_cache()
    assert fs.find(f"{s3.bucket}/gone") == [f"{s3.bucket}/gone/a1.bin"]
