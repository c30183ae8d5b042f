"""The project's errors: one small tree. A video's error carries the reason that lands in the ledger."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal[
    "not_found",
    "not_a_video",
    "no_video_stream",
    "decode_error",
    "truncated",
    "decoder_crashed",
    "timeout",
    "out_of_memory",
    "too_large",
    "model_error",
    "storage_error",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

PASSING_REASONS: frozenset[str] = frozenset(
    {"timeout", "out_of_memory", "storage_error", "model_error", "decoder_crashed"}
)
"""Reasons that may be gone the next time; the others are properties of the file."""


class EmolakeError(Exception):
    """Base of all errors the project raises on purpose."""


class JobFailed(EmolakeError):
    """The job cannot go on; what was committed stays."""


class UserError(EmolakeError):
    """The user's mistake: one line that names the thing and the mend. Exit code 2."""


class VideoError(EmolakeError):
    """What is wrong with one video (or one segment of it); the job goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[VideoError], tuple[Reason, str]]:
        return VideoError, (self.reason, self.detail)


def cannot_write(output: str, error: OSError) -> str:
    """One line for an output that stopped taking writes in mid-run."""
    words = " ".join(str(error).split())[:200]
    return f"output {output} cannot be written: {words}; mend it, the same command resumes"
