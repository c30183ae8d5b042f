"""What a video is called: one spelling of its URI, without what lets one in."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from emolake.pipeline.errors import KEY_NAMES, SESSION, UserError, in_a_line

_CHAINED = re.compile(r"::[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_AUTHORITY = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WEB = ("http://", "https://")
_LOGIN = re.compile(
    r"^((?:https?|ftps?|ftp\+ssl|sftp|ssh|smb|webdavs?|davs?|webhdfs|gist)://)[^/?#]*@"
    r"|^(s3a?://)[^/?#@]*:[^/?#@]*@",
    re.IGNORECASE,
)
"""Where a user's name, and a password, stand before the host; elsewhere that place means something else
(of S3 nothing that a bucket could be)."""
_HOSTLESS = re.compile(r"(?:ftps?|ftp\+ssl|sftp|ssh|smb|webhdfs|hdfs)://", re.IGNORECASE)
"""Whose file systems tell paths without the host."""
_SIGNATURE = re.compile(
    r"([a-z0-9_-]*[-_])?signature|sig|hdnts|hdnea|hdntl|__token__", re.IGNORECASE
)
_SECRET = re.compile(
    r"x-([a-z]+-)*token|((access|(x-)?auth|secret|session|security|bearer|refresh|id|sas|private|oauth2?|api|user|csrf|download|x-[a-z]+-security)"
    r"[-_]?)?token|wowzatokenhash|jwt|sas|hmac|([a-z]+[-_])?passw(or)?d|pwd|passphrase|passcode|[a-z_-]*secret"
    rf"|auth|authorization|bearer|((x|aws|secret|ocp-apim)[-_])*{KEY_NAMES}|[a-z-]*credentials?",
    re.IGNORECASE,
)
_SESSION = re.compile(SESSION, re.IGNORECASE)
"""As servers name theirs; any other session may be what a video shows."""
_ALWAYS = [_SECRET, _SIGNATURE, _SESSION]
_OF_A_PATH = re.compile(r";([^;/=]+)=[^;/]*(?:;(?![^;/]*\.\w{2,4}(?:[;/]|$))[^;/=]*(?=[;/]|$))*")
"""A parameter that stands in a URL's path (RFC 3986, 3.3)."""
_WITHIN = re.compile(r"(?<![#?!/])([#?!/]++)([^#?!/=]++)=")
"""What may be a parameter of a fragment, or of an address, that stands in a value: see `_within`."""
_SIGNING = re.compile(
    r"x-(amz|goog|oss|obs|cos|tos)-.+|awsaccesskeyid|ossaccesskeyid|googleaccessid|key-pair-id|expires",
    re.IGNORECASE,
)
"""What stands beside the signature of a presigned URL (of S3 and its kin, Google, CloudFront)."""
_TENCENT_SIGNING = re.compile("q-.+", re.IGNORECASE)
_POLICY = re.compile("policy", re.IGNORECASE)
_SIGNER = re.compile("key-pair-id|googleaccessid|(aws|oss)accesskeyid", re.IGNORECASE)
_EXPIRING = re.compile("token|md5", re.IGNORECASE)
_EXPIRES = re.compile("md5|expires", re.IGNORECASE)
"""A token that ends, as content networks give it: with each another end."""
_A_FILE = re.compile(r"\.\w{2,4}$")
_AZURE_SIGNING = re.compile(
    "se|sp|sv|sr|st|spr|sip|ss|srt|skoid|sktid|skt|ske|sks|skv", re.IGNORECASE
)


def is_plain(uri: str) -> bool:
    """A name may hold `::`, which fsspec takes for a chain of file systems: it is one where a URI follows."""
    return "::" in uri and not _CHAINED.search(uri)


def protocol_of(uri: str) -> str:
    if is_plain(uri) and "://" not in uri:
        return "file"
    return str(fsspec.utils.get_protocol(uri))


def has_protocol(uri: str) -> bool:
    """Whether there is such a protocol. UserError where there is, and what reads it is not installed."""
    try:
        fsspec.get_filesystem_class(protocol_of(uri))
    except ValueError:
        return False
    except ImportError as error:
        raise UserError(f"{in_a_line(uri)}: {in_a_line(error, 300)}") from None
    return True


def canonical(uri: str) -> str:
    """The one spelling of a video's name: local files by their absolute path without `..`, all others with
    their protocol's first name; unsigned. UserError where what reads its protocol is not installed."""
    if _CHAINED.search(uri) or not has_protocol(uri):
        return unsigned(uri)
    system = fsspec.get_filesystem_class(protocol_of(uri))
    try:
        path = str(system._strip_protocol(uri))
    except ValueError:  # no name at all, such as of a host `[`
        return unsigned(uri)
    if issubclass(system, LocalFileSystem):
        return local_name(path)
    if _leaves_out(path, uri):
        return unsigned(uri)
    name = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    return unsigned(path if _SCHEME.match(path) else f"{name}://{path}")


def local_name(path: str) -> str:
    # POSIX lets two leading slashes mean something else; no system that we run on does.
    return posixpath.normpath(f"/{path.lstrip('/')}" if path.startswith("//") else path)


def namer(uri: str, fs: fsspec.AbstractFileSystem) -> Callable[[str], str]:
    """What the files are called that a file system tells by their paths, which was had for `uri`: local ones
    by their plain absolute path without `..`, all others with their protocol, and with the host where paths
    of theirs leave it out."""
    if isinstance(fs, LocalFileSystem):
        return local_name
    if _CHAINED.search(uri):
        member, _, archive = uri.partition("::")
        if "://" in member:  # and no cache
            return lambda path: f"{fs.unstrip_protocol(path)}::{archive}"
    elif _leaves_out(str(fs._strip_protocol(uri)), uri):
        begin = _AUTHORITY.match(uri)
        assert begin is not None
        # Azure's name a container before the host, and in the path.
        container = begin[1].partition("@")[0] + "/" if uri.lower().startswith(_AZURE) else ""
        return lambda path: f"{begin[0]}/{path.lstrip('/').removeprefix(container)}"
    return lambda path: str(fs.unstrip_protocol(path))


_AZURE = ("abfs://", "abfss://", "wasb://", "wasbs://")


def _leaves_out(path: str, uri: str) -> bool:
    """Whether a file system's path of a URI lacks the host, or what else stands in its place."""
    match = _AUTHORITY.match(uri)
    if match is None or _SCHEME.match(path):
        return False
    return _HOSTLESS.match(uri) is not None or match[1] != path.lstrip("/").partition("/")[0]


def is_no_name(uri: str) -> bool:
    """Whether a URI names no server that there could be, such as a host `[`."""
    try:
        urlsplit(uri if _SCHEME.match(uri) and not _CHAINED.search(uri) else "")
    except ValueError:
        return True
    return False


def unsigned(uri: str) -> str:
    """A URI without what lets one in: of a server's the user's name and password, and of a URL's path, query
    and fragment what is secret by its name, and what signs it, since the same object's next signature is
    another."""
    return "::".join(map(_unsigned, uri.split("::"))) if _CHAINED.search(uri) else _unsigned(uri)


def _unsigned(uri: str) -> str:
    uri = _LOGIN.sub(lambda match: match[1] or match[2], uri)
    if not uri.lower().startswith(_WEB):
        return uri
    address, _, query = uri.partition("?")
    place, mark, fragment = address.partition("#")
    names = [match[1] for match in _OF_A_PATH.finditer(place)]
    place = _OF_A_PATH.sub(
        lambda match: "" if _is_left_out_of_path(match, _left_out_by(names)) else match[0], place
    )
    kept = _kept(fragment, _ALWAYS)
    address = f"{place}{mark}{kept}" if kept or not fragment else place
    if not query:
        return uri if address == uri.partition("?")[0] else address
    query = _kept(query, _left_out_of(query, address))
    return f"{address}?{query}" if query else address


def _is_left_out_of_path(parameter: re.Match[str], left_out: list[re.Pattern[str]]) -> bool:
    if _is_any(parameter[1], [_SESSION]):
        return True
    # Where a path ends so, it may be what says which file.
    names_file = parameter.end() == len(parameter.string) and _A_FILE.search(parameter[0])
    return _is_any(parameter[1], left_out) and not names_file


def _left_out_of(query: str, address: str) -> list[re.Pattern[str]]:
    names = [part.partition("=")[0] for part in re.split("[&;]", query)]
    left_out = _left_out_by(names)
    if (
        _SIGNING not in left_out
        and "expires" in map(str.lower, names)
        and any(map(_EXPIRING.fullmatch, names))
        and _A_FILE.search(address)  # else it may be the token that says which
    ):
        left_out.append(_EXPIRES)
    if {"sig", "sv"} <= set(map(str.lower, names)):
        left_out.append(_AZURE_SIGNING)
    return left_out


def _left_out_by(names: list[str]) -> list[re.Pattern[str]]:
    """What is left out of a path, or a query, that holds parameters of these names."""
    left_out = [*_ALWAYS]
    if any(map(_SIGNATURE.fullmatch, names)):
        left_out.append(_SIGNING)
        left_out += [_TENCENT_SIGNING] * ("q-signature" in map(str.lower, names))
        left_out += [_POLICY] * any(map(_SIGNER.fullmatch, names))
    return left_out


def _kept(told: str, left_out: list[re.Pattern[str]]) -> str:
    """A query, or a fragment, without some parameters, and without what follows one within a value."""
    kept, gone = "", False
    for separator, part in re.findall(r"(^|[&;])([^&;]*)", told):
        # A `;` may stand in a value; it begins a parameter where a name follows, or what says which file.
        if separator == ";" and gone and "=" not in part and not _A_FILE.search(part):
            continue
        within = (at for at, name in _within(part) if _is_any(name, _ALWAYS))
        stays = "" if _is_any(part.partition("=")[0], left_out) else part[: next(within, None)]
        gone = len(stays) < len(part)
        kept += separator + stays if stays or not part else ""
    return kept if len(kept) == len(told) else kept.lstrip("&;")


def _within(part: str) -> Iterator[tuple[int, str]]:
    """Where a parameter within a value begins, and its name. It follows `#` or `?`, or stands first; a folder
    may be called `st=ny`."""
    for match in _WITHIN.finditer(part):
        mark = re.search("[#?]", match[1])
        if mark or not match.start():
            yield match.start() + (mark.start() if mark else 0), match[2]


def _is_any(name: str, patterns: list[re.Pattern[str]]) -> bool:
    """Whether a parameter is called so, or is an entry of one (`token[]`), or an entry so called."""
    name = unquote(name)
    called = {name, name.rpartition("[")[2].removesuffix("]"), re.sub(r"(\[\d*\])+$", "", name)}
    return any(pattern.fullmatch(one) for pattern in patterns for one in called)
