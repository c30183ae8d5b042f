"""Names as archives have them: what exists is found exactly once, and read from where it is."""

import json
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from emolake.pipeline.corpus.listing import _beside, _video, find_videos
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.names import unsigned
from tests.conftest import S3
from tests.local_server import running

PARTS = [*"aZ0 #?%[]{}*!&;'\"~^$@+=,.-_é", "e\u0301", "日", "::", "%20", "..", "\t"]
NASTY = (
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=8)
    .map("".join)
    .filter(lambda name: not name.startswith("."))
)
PLAIN = Storage()


def uris(*inputs: object, storage: Storage = PLAIN) -> list[str]:
    return [
        row["uri"]
        for table in find_videos(map(str, inputs), storage)
        for row in table.to_pylist()
        if row["missing"] is None
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(folder=NASTY, name=NASTY, ending=st.sampled_from([".mp4", ".MKV"]))
def test_any_name_is_found_by_folder_by_itself_and_by_manifest(
    folder: str, name: str, ending: str
) -> None:
    with tempfile.TemporaryDirectory() as root:
        there = Path(root) / folder
        there.mkdir()
        film = there / f"{name}{ending}"
        film.write_bytes(name.encode())
        manifest = Path(root) / "list.jsonl"
        manifest.write_text(json.dumps({"uri": f"{folder}/{name}{ending}"}) + "\n")
        told = {
            "its folder": uris(there),
            "its folder, with a slash": uris(f"{there}/"),
            "its name": uris(film),
            "a manifest": uris(manifest),
        }
        assert told == {by: [str(film)] for by in told}
        fs, path = Storage().locate(str(film))
        assert fs.cat_file(path) == name.encode()


def test_keys_of_an_object_store_are_found_as_they_are_called(s3: S3) -> None:
    fs = s3.fs()
    names = ["std::vector.mp4", "a b#c?d%20.mp4", "Talk [dQw4w9WgXcQ].mp4", "é.mp4", "e\u0301.mp4"]
    for name in names:
        fs.pipe_file(f"{s3.bucket}/nasty/{name}", name.encode())
    storage = Storage({"endpoint_url": s3.endpoint, "key": "k", "secret": "s"})
    found = uris(f"s3://{s3.bucket}/nasty/", storage=storage)
    assert sorted(found) == sorted(f"s3://{s3.bucket}/nasty/{name}" for name in names)
    for uri in found:
        assert uris(uri, storage=storage) == [uri]
        there, path = storage.locate(uri)
        assert there.cat_file(path).decode() == uri.rpartition("/")[2]


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (corpus / "b", elsewhere / "deep"):
        folder.mkdir(parents=True)
    (corpus / "b" / "own.mp4").write_bytes(b"x")
    (elsewhere / "deep" / "other.mp4").write_bytes(b"y")
    (corpus / "a").symlink_to(corpus / "b")  # before the folder itself, by name
    (corpus / "linked").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(corpus)
    (corpus / "gone").symlink_to(tmp_path / "nowhere")
    assert sorted(uris(corpus)) == [
        str(corpus / "b" / "own.mp4"),
        str(corpus / "linked" / "deep" / "other.mp4"),
    ]


def test_typescript_is_no_transport_stream_and_a_damaged_stream_still_is_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "app.ts").write_text("export const answer: string = 'ja, café';\n" * 20)
    (tmp_path / "edge.ts").write_bytes(b"//" + b"x" * 253 + "é".encode())  # cut within a letter
    streams = {
        "damaged.ts": bytes(range(256)) * 4,
        "empty.ts": b"",
        "one.ts": b"\xf8",
        "talk.ts": (b"\x47" + bytes(187)) * 3,
    }
    for name, data in streams.items():
        (tmp_path / name).write_bytes(data)
    assert [Path(uri).name for uri in uris(tmp_path)] == list(streams)


def test_an_empty_or_unreadable_stream_in_a_bucket_refuses_no_archive(s3: S3, monkeypatch) -> None:
    fs = s3.fs()
    for name, data in {
        "empty.ts": b"",
        "good.mp4": b"x",
        "frozen.ts": b"text",
        "app.ts": b"let a",
    }.items():
        fs.pipe_file(f"{s3.bucket}/streams/{name}", data)
    real = S3FileSystem._cat_file

    async def frozen(self, path: str, *more: object, **options: object) -> bytes:
        if path.endswith("frozen.ts"):
            raise PermissionError("The operation is not valid for the object's storage class")
        return await real(self, path, *more, **options)

    monkeypatch.setattr(S3FileSystem, "_cat_file", frozen)
    monkeypatch.setattr(S3FileSystem, "cachable", False)  # what is kept would stay patched
    storage = Storage({"endpoint_url": s3.endpoint, "key": "k", "secret": "s"})
    found = [uri.rpartition("/")[2] for uri in uris(f"s3://{s3.bucket}/streams/", storage=storage)]
    assert found == ["empty.ts", "frozen.ts", "good.mp4"]


def test_a_manifest_in_a_bucket_names_what_lies_beside_it(s3: S3) -> None:
    fs = s3.fs()
    fs.pipe_file(f"{s3.bucket}/beside/v/x.mp4", b"x")
    fs.pipe_file(f"{s3.bucket}/beside/lists/m.csv", b"uri,corpus\n../v/x.mp4,NA\n./../v/x.mp4,\n")
    storage = Storage({"endpoint_url": s3.endpoint, "key": "k", "secret": "s"})
    found = find_videos([f"s3://{s3.bucket}/beside/lists/m.csv"], storage)
    rows = [row for table in found for row in table.to_pylist()]
    assert [(r["uri"], r["corpus"], r["missing"]) for r in rows] == [
        (f"s3://{s3.bucket}/beside/v/x.mp4", corpus, None) for corpus in ("NA", None)
    ]


def test_an_absolute_path_in_a_buckets_manifest_is_no_other_bucket(s3: S3) -> None:
    fs = s3.fs()
    fs.pipe_file(f"{s3.bucket}/v/x.mp4", b"x")
    path = f"{s3.bucket}/absolute.csv"
    fs.pipe_file(path, f"uri\n/{s3.bucket}/v/x.mp4\n".encode())
    storage = Storage({"endpoint_url": s3.endpoint, "key": "k", "secret": "s"})
    rows = [r for t in find_videos([f"s3://{path}"], storage) for r in t.to_pylist()]
    assert [(r["uri"], r["missing"]) for r in rows] == [(f"/{s3.bucket}/v/x.mp4", "not_found")]


@pytest.mark.parametrize("query", ["", "?v=1", "?hdnts=exp=1~acl=/*~hmac=f00"])
def test_a_manifest_on_a_web_server_names_what_lies_beside_it(query: str) -> None:
    beside = _beside(f"https://h/lists/m.csv{query}")
    for name, meant in {
        "a.mp4": "https://h/lists/a.mp4",
        "tape:01.mp4": "https://h/lists/tape:01.mp4",
        "../v/b.mp4": "https://h/v/b.mp4",
        "/c.mp4": "https://h/c.mp4",
        "//[cam 1]/c.mp4": "https://h//[cam 1]/c.mp4",
        "s3://b/d.mp4": "s3://b/d.mp4",
    }.items():
        assert beside(name) == meant


@pytest.mark.parametrize(
    "text",
    [
        "\n\nuri,corpus\na.mp4,c\n",
        "\r\nuri\r\na.mp4\r\n",
        "uri,n\ra.mp4,1\r",
        '"x\ny",uri\n1,a.mp4\n',
        f"{'n' * 140_000},uri\n1,a.mp4\n",
    ],
)
def test_a_table_of_others_is_read_however_it_is_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "m.csv").write_bytes(text.encode())
    assert uris(tmp_path / "m.csv") == [str(tmp_path / "a.mp4")]


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,uri\na.mp4,b.mp4\n")
    with pytest.raises(UserError, match="has two columns 'uri'"):
        uris(tmp_path / "m.csv")


def test_a_key_that_holds_a_url_is_one_name_by_folder_and_by_manifest(s3: S3) -> None:
    fs = s3.fs()
    names = [f"{s3.bucket}/crawl/https://{who}@site.org/a.mp4" for who in ("alice", "bob")]
    for name in names:
        fs.pipe_file(name, b"x")
    told = [{"uri": f"s3://{name}", "size": 1, "etag": "e"} for name in names]
    lines = "".join(json.dumps(row) + "\n" for row in told)
    fs.pipe_file(f"{s3.bucket}/crawled.jsonl", lines.encode())
    storage = Storage({"endpoint_url": s3.endpoint, "key": "k", "secret": "s"})
    meant = [f"s3://{name}" for name in names]
    assert uris(f"s3://{s3.bucket}/crawl/", storage=storage) == meant
    assert uris(f"s3://{s3.bucket}/crawled.jsonl", storage=storage) == meant


def test_columns_of_others_are_passed_over_whatever_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = ["uri,note,corpus"] + ["a.mp4,1,c"] * 60_000 + ["a.mp4,words,c"]
    (tmp_path / "m.csv").write_text("\ufeff" + "\n".join(rows) + "\n")
    tables = list(find_videos([str(tmp_path / "m.csv")], Storage()))
    assert sum(table.num_rows for table in tables) == 60_001
    assert {c for table in tables for c in table["corpus"].to_pylist()} == {"c"}


def test_a_presigned_url_that_is_gone_is_no_pattern_and_keeps_its_signature(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/a.mp4?X-Amz-Signature=f00"
    with pytest.raises(UserError) as caught:
        uris(url)
    assert "f00" not in in_a_line(caught.value)
    assert "pattern" not in str(caught.value)


def test_a_pattern_still_is_one_where_nothing_is_called_so(tmp_path: Path) -> None:
    for name in ("a1.mp4", "a2.mp4", "b1.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert [Path(u).name for u in uris(tmp_path / "a[12].mp4")] == ["a1.mp4", "a2.mp4"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"corpus": "x/../../elsewhere"}, "row 2: corpus 'x/../../elsewhere' may hold"),
        ({"corpus": "a/b"}, "may hold letters"),
        ({"corpus": 7}, "corpus 7 is no text"),
        ({"transcript_uri": 12}, "transcript_uri 12 is no text"),
        ({"size": "ten"}, "size 'ten' is no number of bytes"),
        ({"size": -1}, "size -1 is no number"),
        ({"size": 1 << 63}, "is no number of bytes"),
        ({"etag": "\ud800"}, "is no Unicode"),
        ({"age": "\ud800"}, "is no Unicode"),
        ({"uri": None}, "row 2 has no uri"),
        ({"uri": "a\ud800.mp4"}, "is no Unicode"),
    ],
)
def test_a_manifest_that_would_write_elsewhere_or_break_a_run_is_refused(
    row: dict, told: str, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = [{"uri": "a.mp4"}, {"uri": "a.mp4"} | row]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match="manifest") as caught:
        uris(manifest)
    assert told in str(caught.value)


def test_two_ways_to_one_file_are_one_video_where_size_and_etag_are_told_too(
    tmp_path: Path,
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.mp4").write_bytes(b"x")
    names = ["real/x.mp4", "real/../real/x.mp4", "./real//x.mp4"]
    table = pa.table({"uri": names, "size": [1, 1, 1], "etag": ["e"] * 3})
    pq.write_table(table, tmp_path / "m.parquet")
    rows = [r for t in find_videos([str(tmp_path / "m.parquet")], Storage()) for r in t.to_pylist()]
    assert len({row["video_id"] for row in rows}) == 1
    assert {row["uri"] for row in rows} == {str(tmp_path / "real" / "x.mp4")}


@pytest.mark.parametrize(
    ("signed", "plain"),
    [
        ("https://b.s3.amazonaws.com/a.mp4?versionId=3&X-Amz-Date=1&X-Amz-Signature=f00", "?versionId=3"),
        ("https://b.s3.amazonaws.com/a.mp4?AWSAccessKeyId=k&Signature=f00&Expires=9", ""),
        ("https://x.blob.core.windows.net/c/a.mp4?sp=r&se=2026&sv=2022&sr=b&sig=f00", ""),
        ("https://storage.googleapis.com/b/a.mp4?X-Goog-Expires=9&X-Goog-Signature=f00", ""),
        ("https://d.cloudfront.net/a.mp4?Policy=p&Signature=f00&Key-Pair-Id=k&t=5", "?t=5"),
        ("https://v.b-cdn.net/a.mp4?token=f00&expires=1700000000", ""),
        ("https://host/a.mp4?md5=x&expires=1700000000&v=3", "?v=3"),
        ("https://host/a.mp4?expires=1700000000", "?expires=1700000000"),
        ("https://host/get?md5=x&expires=1700000000", "?md5=x&expires=1700000000"),
        ("https://host/watch?v=dQw4w9WgXcQ", "?v=dQw4w9WgXcQ"),
        ("https://host/a;v=2/b.mp4?t=1#t=10,20", "?t=1#t=10,20"),
        ("https://host/clip;auth=1.mp4", ""),
        ("https://host/a.mp4?", "?"),
        ("https://host/a.mp4#", ""),
        ("https://host/a.mp4?token=x#t=10", ""),
        ("s3://bucket/what?Signature=mine.mp4", "?Signature=mine.mp4"),
    ],
)  # fmt: skip
def test_what_signs_a_url_is_no_part_of_the_videos_name(signed: str, plain: str) -> None:
    assert unsigned(signed) == signed.partition("?")[0] + plain
    told = in_a_line(f"403 for {signed} 'and so on'")
    assert ("f00" in told) is False
    assert told.endswith("'and so on'")


def test_a_web_servers_folder_tells_of_its_files_what_each_of_them_tells(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    film = tmp_path / "v" / "a.mp4"
    film.write_bytes(b"x" * 100)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with running(
        ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path))
    ) as server:
        folder = f"http://127.0.0.1:{server.server_port}/v/"

        def rows(name: str) -> list[dict]:
            return [row for part in find_videos([name], Storage()) for row in part.to_pylist()]

        (row,) = rows(folder)
        assert row["size"] == 100
        assert [row] == rows(f"{folder}a.mp4")
        (tmp_path / "v" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
        assert [told["missing"] for told in rows(folder)] == [None, "not_found"]
        film.write_bytes(b"x" * 200)
        assert row["video_id"] != rows(folder)[0]["video_id"]


class Google(MemoryFileSystem):
    """As gcsfs, which is not installed here, has names."""

    protocol = ("gs", "gcs")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.rpartition("://")[2]


def test_googles_etags_have_no_quotes_in_a_listing_nor_in_an_inventory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(import_module("fsspec.registry")._registry, "gs", Google)
    manifest = tmp_path / "m.csv"
    told = {"size": 5, "name": "b/a.mp4", "type": "file"}
    for protocol, quoted in (("gs", "CKj="), ("s3", '"CKj="')):
        manifest.write_text(f"uri,size,etag\n{protocol}://b/a.mp4,5,CKj=\n")
        ((row,),) = [part.to_pylist() for part in find_videos([str(manifest)], Storage())]
        listed = _video(f"{protocol}://b/a.mp4", told | {"ETag": quoted})
        assert row["video_id"] == listed.video_id
