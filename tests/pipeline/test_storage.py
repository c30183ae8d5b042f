"""Storage as it is: conditional creates, removals and errors as stores and servers answer them."""

import pickle
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from emolake.pipeline.corpus.listing import find_videos, stat_video
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.storage import files
from emolake.pipeline.storage.files import (
    Storage,
    as_os_error,
    create_exclusively,
    parse_options,
)
from emolake.pipeline.storage.names import canonical, namer, unsigned


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


def test_what_s3_keeps_though_it_answers_well_is_told(s3: Any, monkeypatch) -> None:
    fs = s3.fs()
    for name in "ab":
        fs.pipe_file(f"{s3.bucket}/kept/{name}", b"x")
    real, asked = fs.call_s3, []

    def keeps_a(method: str, **options: Any) -> Any:
        keys = [named["Key"] for named in options["Delete"]["Objects"]]
        asked.append(keys)
        options["Delete"]["Objects"] = [{"Key": key} for key in keys if key != "kept/a"]
        told = real(method, **options) if options["Delete"]["Objects"] else {}
        return told | {"Errors": [{"Key": "kept/a", "Code": "AccessDenied"}] * ("kept/a" in keys)}

    monkeypatch.setattr(fs, "call_s3", keeps_a)
    with pytest.raises(OSError, match="kept/a was not removed: AccessDenied"):
        files.remove_all(fs, [f"{s3.bucket}/kept/{name}" for name in "ab"])
    assert asked == [["kept/a", "kept/b"], ["kept/a"], ["kept/a"]]
    fs.invalidate_cache()
    assert fs.find(f"{s3.bucket}/kept") == [f"{s3.bucket}/kept/a"]


@pytest.fixture
def server() -> Iterator[str]:
    """Answers /404 with 404, and so on."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(int(self.path.strip("/")))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815 (its name is http.server's)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_server_that_fails_has_not_said_that_nothing_is_there(server: str, status: int) -> None:
    fs, path = Storage().locate(f"{server}/{status}")
    with pytest.raises(OSError, match=str(status)) as caught:
        fs.info(path)
    assert not isinstance(caught.value, FileNotFoundError)
    assert stat_video(f"{server}/{status}", Storage()).missing == "storage_error"


def test_what_is_not_there_is_not_found(server: str) -> None:
    fs, path = Storage().locate(f"{server}/404")
    with pytest.raises(FileNotFoundError):
        fs.info(path)
    assert stat_video(f"{server}/404", Storage()).missing == "not_found"


def test_what_a_bucket_has_not_is_not_found_however_it_is_asked_for(s3: Any) -> None:
    told = {"endpoint_url": s3.endpoint, "key": "k", "secret": "s"}
    fs, path = Storage(told).locate(f"s3://{s3.bucket}/no/such/key")
    for ask in (
        fs.info,
        fs.cat_file,
        lambda p: fs.cat_file(p, start=0),
        lambda p: fs.open(p, "rb"),
    ):
        with pytest.raises(FileNotFoundError):
            ask(path)


def test_a_client_librarys_errors_are_those_of_the_system() -> None:
    away = EndpointConnectionError(endpoint_url="http://away?sig=f00")
    told = as_os_error(away)
    assert isinstance(told, OSError)
    assert "f00" not in str(told)
    assert as_os_error(ValueError("ours")).args == ("ours",)
    assert isinstance(as_os_error(FileNotFoundError("no")), FileNotFoundError)


def test_a_lake_that_was_sent_elsewhere_speaks_the_same(s3: Any, monkeypatch) -> None:
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"}
    options["config_kwargs"] = {"retries": {"max_attempts": 1}, "connect_timeout": 1}
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    lake = Lake.at("s3://bucket/lake", Storage(options))
    for one in (lake, pickle.loads(pickle.dumps(lake))):
        with pytest.raises(OSError, match="EndpointConnectionError"):
            one.files("videos")


def test_what_opens_an_object_store_is_not_sent_to_a_web_server() -> None:
    told = {"key": "k", "secret": "s", "endpoint_url": "http://minio"}
    fs, _ = Storage(told | {"client_kwargs": {"region_name": "x"}}).locate("https://host/a.mp4")
    assert not {"key", "secret", "endpoint_url", "client_kwargs"} & fs.storage_options.keys()
    fs, _ = Storage({"client_kwargs": {"headers": {"X": "y"}}}).locate("https://host/a.mp4")
    assert fs.client_kwargs == {"headers": {"X": "y"}}


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:f00@host/a.mp4",
        "https://f00@host/a.mp4",
        "https://u:p@f00@host/a.mp4",
        "ftp://user:f00@host/a.mp4",
        "simplecache::https://u:f00@host/a.mp4",
        "https://h/a.mp4?token=f00",
        "https://h/a.mp4?v=1&apikey=f00",
        "https://h/a.mp4?password=f00",
        "https://h/a.mp4?x-oss-signature=f00&x-oss-credential=f00",
        "https://h/a.mp4?q-ak=1&q-signature=f00",
        "http://h/a?hdnts=exp=1~hmac=f00",
        "zip://a.mp4::https://h/a.zip?X-Amz-Signature=f00",
        "s3a://AKIA:f00@bucket/a.mp4",
        "webhdfs://u:f00@127.0.0.1:9/v/a.mp4",
        "https://h/a.mp4?private_token=f00&oauth_token=f00&user_password=f00",
        "https://h/a.mp4?X-Tos-Security-Token=f00&x-cos-security-token=f00",
        "https://h/a.mp4?subscription-key=f00&passphrase=f00&auth=f00&Authorization=f00",
        "https://h/v;token=f00/a.mp4;jwt=f00?v=1",
        "https://h/v;jsessionid=f00.jvm1",
        "https://h/v;jsessionid=f00.s12/a.mp4?PHPSESSID=f00&v=1",
        "https://h/v;token=f00.abc/a.mp4",
        "https://h/a.mp4?v=1;token=f00&w=2",
        "https://h/app#!access_token=f00",
        "https://h/app#/a#b#token=f00",
        "https://h/app#/token=f00",
        "https://h/a.mp4?X-Plex-Token=f00&x-token=f00",
        "https://h/a.mp4#t=1;token=f00",
        "https://h/a.mp4?url=https://k/b?token=f00",
        "https://h/a.mp4?v=1#access_token=f00&state=1",
        "https://h/a.mp4#access_token=f00&state=1",
        "https://h/app#/v.mp4?token=f00",
        "https://h/app#/v.mp4?access_token=f00&v=1",
        "https://h/a.mp4#?token=f00",
        "https://h/take #1.mp4?X-Amz-Credential=f00&X-Amz-Date=9&X-Amz-Signature=f00",
        "https://h/a.mp4?credentials=f00&bearer=f00&csrf_token=f00&X-Auth-Key=f00",
        "https://h/a.mp4?secret_access_key=f00&download-token=f00",
        "https://h/v;Policy=p;Signature=f00;Key-Pair-Id=k;Expires=9/a.mp4",
        "https://h/a.mp4?__token__=exp=9~f00",
        "https://h/a.mp4?mycredentials=f00&passcode=f00&oauth_signature=f00",
        "https://h/a.mp4?token=it's-f00&v=1",
        "https://h/a.mp4?x-amz-signature='f00",
        "https://h/a.mp4?token=(a;f00&v=1",
        "https://h/a.mp4?token[]=f00&auth[token]=f00&accessToken%5B0%5D=f00",
        "https://h/a.mp4?consumer_secret=f00&api_secret=f00&webhook_secret=f00&wsSecret=f00",
        "https://h/a.mp4?app_key=f00&client-key=f00&Ocp-Apim-Subscription-Key=f00",
        "https://h/a.mp4?secret_token=f00&wowzatokenhash=f00",
        "https://h/p?u=https://b/a.mp4?token=(a;f00&v=1",
        "https://h/v;token=(a;f00/a.mp4",
        "https://h/a.mp4?token[0][1]=f00&token%5B0%5D%5B%5D=f00",
        f"https://h/a.mp4?{'my-' * 15}signature=f00",
    ],
)
def test_what_lets_one_in_is_no_part_of_a_name_nor_of_a_line(uri: str) -> None:
    assert "f00" not in unsigned(uri)
    for before in ("cannot open ", "...", "1.", "5", "-"):
        assert "f00" not in in_a_line(f"{before}{uri} today")
    assert "f00" not in canonical(uri)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            "no https://h/a?token=f00; mend it; then go",
            "no https://h/a?token=...; mend it; then go",
        ),
        ("url='https://h/a?sig=f00',status=403", "url='https://h/a?sig=...',status=403"),
        ("open('https://h/a?token=f00'): failed", "open('https://h/a?token=...'): failed"),
        ("https://h/a?token=f00'", "https://h/a?token=...'"),
    ],
)
def test_what_follows_a_secret_is_told(told: str, line: str) -> None:
    assert in_a_line(told) == line


def test_a_line_of_something_long_is_made_at_once() -> None:
    for letters in ("a-", "token", "x://"):
        assert in_a_line(letters * 100_000, 10) == (letters * 10)[:10]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("letters", ["?", "?!", "#/", "a?", "a=", "?a"])
def test_a_name_of_something_long_is_made_at_once(letters: str) -> None:
    name = f"https://h/x?v={letters * 100_000}"  # which took minutes
    assert unsigned(name) == name


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("file:///v/../v/a b.mp4", "/v/a b.mp4"),
        ("s3a://b/k.mp4", "s3://b/k.mp4"),
        ("s3://b/what?v=1#2.mp4", "s3://b/what?v=1#2.mp4"),
        ("https://h/a.mp4?v=1", "https://h/a.mp4?v=1"),
        ("/v/std::vector.mp4", "/v/std::vector.mp4"),
        ("//v/a.mp4", "/v/a.mp4"),
        ("file:////v/a.mp4", "/v/a.mp4"),
        ("ftp://host1/a.mp4", "ftp://host1/a.mp4"),
        ("webhdfs://cluster:9870/v/a.mp4", "webhdfs://cluster:9870/v/a.mp4"),
        ("hdfs://namenode/v/a.mp4", "hdfs://namenode/v/a.mp4"),
        ("ftp://[bad/a.mp4", "ftp://[bad/a.mp4"),
        ("s3a://b/crawl/https://alice@site.org/a.mp4", "s3://b/crawl/https://alice@site.org/a.mp4"),
        ("zip://a@1.mp4::file:///v/x.zip", "zip://a@1.mp4::file:///v/x.zip"),
        ("github://org:repo@main/a.mp4", "github://org:repo@main/a.mp4"),
        ("https://h/s?show=5&se=2&policy=1", "https://h/s?show=5&se=2&policy=1"),
        ("https://h/s?show=5&se=2&sig=f00", "https://h/s?show=5&se=2"),
        ("https://h/s?q-clip=2&policy=1&signature=f00", "https://h/s?q-clip=2&policy=1"),
        ("https://h/d?file_token=A", "https://h/d?file_token=A"),
        ("https://h/d?key=a.mp4", "https://h/d?key=a.mp4"),
        ("https://h/watch;sid=1", "https://h/watch;sid=1"),
        ("https://h/watch?session_id=1;v=2", "https://h/watch?session_id=1;v=2"),
        ("https://h/d;token=a.mp4", "https://h/d;token=a.mp4"),
        ("https://h/d;signature=1.mp4", "https://h/d;signature=1.mp4"),
        ("https://h/d?file=/lake/auth=public/a.mp4", "https://h/d?file=/lake/auth=public/a.mp4"),
        ("https://h/d?sig=S&file=/lake/st=ny/a.mp4", "https://h/d?file=/lake/st=ny/a.mp4"),
        ("https://h/d?token=1;b=2;c", "https://h/d?b=2;c"),
        ("https://h/d?token=1;c&b=2", "https://h/d?b=2"),
        ("https://h/d?token=1;a.mp4", "https://h/d?a.mp4"),
        ("https://h/d;token=1;a.mp4", "https://h/d;a.mp4"),
        ("https://h/d?auth[file]=a.mp4", "https://h/d?auth[file]=a.mp4"),
        ("https://h/d?primary_account_key=7", "https://h/d?primary_account_key=7"),
        ("https://h/v;Policy=p;Signature=f00;Key-Pair-Id=k;Expires=9/a.mp4", "https://h/v/a.mp4"),
        ("https://h/v;q-ak=1;q-signature=f00;q-key-time=2/a.mp4", "https://h/v/a.mp4"),
        ("https://h/app#/watch/auth=1/v=2", "https://h/app#/watch/auth=1/v=2"),
        ("https://h/a.mp4#access_token=f00", "https://h/a.mp4"),
        ("https://h/a.mp4?%74oken=f00", "https://h/a.mp4"),
        ("https://h/a.mp4?a=1;token=2&b=/x?c=3", "https://h/a.mp4?a=1&b=/x?c=3"),
        ("ftp://nas/nas/a.mp4", "ftp://nas/nas/a.mp4"),
        ("http://host?id=5", "http://host?id=5"),
    ],
)
def test_a_video_has_one_name_however_it_is_spelt(spelt: str, name: str) -> None:
    assert canonical(spelt) == canonical(name) == name


@pytest.mark.parametrize("pairs", [["a=1", "a.b=2"], ["a.b=2", "a=1"]])
def test_an_option_is_a_value_or_a_group(pairs: list[str]) -> None:
    with pytest.raises(UserError, match="is given as a value and as"):
        parse_options(pairs)


@pytest.mark.parametrize("pair", ["headers=Authorization:x", "client_kwargs.headers=x"])
def test_a_group_of_options_is_no_value(pair: str) -> None:
    with pytest.raises(UserError, match=r"is a group; write .*\.NAME=VALUE"):
        parse_options([pair])


def test_options_that_count_are_numbers_and_names_are_not() -> None:
    told = ["block_size=1048576", "config_kwargs.connect_timeout=5", "key=0042", "project=7"]
    assert parse_options(told) == {
        "block_size": 1048576,
        "config_kwargs": {"connect_timeout": 5},
        "key": "0042",
        "project": "7",
    }
    assert parse_options(["headers.X-Runtime=1.10"]) == {"headers": {"X-Runtime": "1.10"}}


class OneOfTwoHosts(MemoryFileSystem):
    """Leaves the host out of its paths, as FTP's, HDFS' and SFTP's file systems do."""

    protocol = "ftp"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].partition("/")[2] if "://" in path else path


def test_files_of_two_hosts_are_two_whose_names_keep_the_host() -> None:
    fs = OneOfTwoHosts(skip_instance_cache=True)
    for host in ("one", "u:f00@two:21"):
        assert namer(f"ftp://{host}/v", fs)("/v/a.mp4") == f"ftp://{host}/v/a.mp4"


def test_azures_names_keep_account_and_container() -> None:
    class Azure(MemoryFileSystem):
        protocol = "abfs"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "c/v" if "://" in path else path  # as adlfs, which is not installed here

    account = "abfs://c@account.dfs.core.windows.net"
    assert namer(f"{account}/v", Azure())("c/v/a.mp4") == f"{account}/v/a.mp4"
    assert unsigned(f"{account}/v/a.mp4") == f"{account}/v/a.mp4"


def test_members_of_archives_keep_their_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("clip[1].mp4", b"x")
        archive.writestr("b.mp4", b"y")
    inside = f"file://{tmp_path}/x.zip"
    found = find_videos([f"zip://*.mp4::{inside}"], Storage())
    uris = [uri for table in found for uri in table["uri"].to_pylist()]
    assert uris == [f"zip://b.mp4::{inside}", f"zip://clip[1].mp4::{inside}"]
    assert [stat_video(uri, Storage()).uri for uri in uris] == uris
    assert [stat_video(uri, Storage()).missing for uri in uris] == [None, None]


def test_a_server_that_is_away_costs_the_rows_that_name_it(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    manifest = tmp_path / "m.csv"
    manifest.write_text("uri\na.mp4\nftp://127.0.0.1:9/a.mp4\nftp://[bad/a.mp4\n")
    rows = [r for table in find_videos([str(manifest)], Storage()) for r in table.to_pylist()]
    assert [row["missing"] for row in rows] == [None, "storage_error", "not_found"]
    with pytest.raises(UserError, match="cannot be listed"):
        list(find_videos(["ftp://127.0.0.1:9/"], Storage()))
    with pytest.raises(UserError, match="cannot be reached"):
        Lake.at("ftp://127.0.0.1:9/out", Storage())


def test_a_manifests_bucket_without_credentials_is_the_runs_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    storage = Storage({"endpoint_url": "http://127.0.0.1:9", "use_ssl": False})
    with pytest.raises(UserError, match="NoCredentialsError"):
        stat_video("s3://bucket/a.mp4", storage)
    login = "sso_start_url = https://x/start\nsso_region = eu-west-1\n"
    login += "sso_account_id = 1\nsso_role_name = reader\n"
    (tmp_path / "config").write_text(f"[profile night]\n{login}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(UserError, match="SSOTokenLoadError"):
        stat_video("s3://bucket/a.mp4", Storage({**storage.options, "profile": "night"}))
