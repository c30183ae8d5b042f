"""The project's errors, one small tree:

EmolakeError
  UserError         the user's mistake: one line, exit code 2, nothing was started
    Damaged         a file of the lake; JobFailed where it is met when work has begun
  JobFailed         the job cannot go on: exit code 1, what was committed stays
    DeviceFailed    because an accelerator is broken; on another node it may go on
  VideoError        one video's, with the reason that lands in the ledger; the job goes on
  lake.LeaseLost    another run has the output by now
  lake.FilesChanged files went while they were read: read again
"""

from __future__ import annotations

import re
from typing import Literal

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

PASSING_REASONS: frozenset[str] = frozenset(
    {"timeout", "out_of_memory", "storage_error", "model_error", "decoder_crashed"}
)
"""Reasons that may be gone the next time; the others are properties of the file."""


class EmolakeError(Exception):
    """Base of all errors the project raises on purpose."""


class JobFailed(EmolakeError):
    """The job cannot go on; what was committed stays."""


class DeviceFailed(JobFailed):
    """An accelerator answers with errors of its own, whatever it is asked."""


class UserError(EmolakeError):
    """The user's mistake: one line that names the thing and the mend. Exit code 2."""


class Damaged(UserError):
    """A file of the lake that cannot be read as what it is."""


class VideoError(EmolakeError):
    """What is wrong with one video (or one segment of it); the job goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[VideoError], tuple[Reason, str]]:
        return VideoError, (self.reason, self.detail)


SESSION = r"jsessionid|phpsessid|aspsessionid[a-z]*|asp\.net_sessionid"
"""What servers call the session that a URL opens, in any case."""
KEY_NAMES = (
    r"(?:access|auth|api|account|app|client|consumer|shared|subscription|master|private|secret)"
    r"[-_]?key"
)
"""Keys that open something; a plain `key` may say which video it is."""
_CONFIDENTIAL = (
    rf"(?<![a-z0-9])(?:bearer|sig|hdnts|hdnea|hdntl|hmac|jwt|sas|{SESSION}|authorization|auth|passphrase|passcode"
    r"|(?<=[?&])key)"
    r"|(?<![a-z0-9_.-])[a-z0-9_.-]{0,200}"
    rf"(?:token|token__|tokenhash|signature|credentials?|secret|passw(?:or)?d|pwd|{KEY_NAMES})"
)
"""Names (a regular expression, any case) whose values are not for lines that people read."""
_TOLD = re.compile(
    rf"({_CONFIDENTIAL})(\]|%5D|(?:\[[^\]=&\s]*\]|%5B[^=&\s]*?%5D)+)?="
    # A quote, and a `;`, may stand in a value, and may end it.
    r"(?:[^&;\s\"']|;(?!\s|$|[^&;=\s]*=)|'(?![,):>\]\s]|$))+",
    re.IGNORECASE,
)
_USER = re.compile(
    r"(?<![a-z])((?!(?:abfss?|wasbs?|az|oci)://)[a-z][a-z0-9+.-]{0,20}://)[^/?#\s]*@", re.IGNORECASE
)


def in_a_line(told: object, most: int | None = None) -> str:
    """What others say in many lines, as the first `most` characters of one; passwords and signatures of
    URLs in it are left out."""
    line = " ".join(str(told).split())
    return _USER.sub(r"\1...@", _TOLD.sub(r"\1\2=...", line))[:most]
