"""The lake in buckets as they are: with versions, other people's objects, uploads left half done."""

from typing import Any

import pytest

from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.forgetting import begin
from emolake.pipeline.lake.layout import DATA_TABLES, LEDGER, Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.lake.order import new_commit_id
from emolake.pipeline.lake.reading import live_rows
from emolake.pipeline.lake.recovery import erase, recover
from emolake.pipeline.storage.files import Storage
from emolake.pipeline.storage.traffic import ours
from tests.conftest import S3
from tests.pipeline.lake.test_lake import RUN, NoFence, segment


@pytest.fixture
def lake(s3: S3, request: pytest.FixtureRequest) -> Lake:
    options = {"endpoint_url": s3.endpoint, "key": "k", "secret": "s"}
    bucket = request.node.name.replace("_", "-")[:40]
    s3.fs().mkdir(bucket)
    return Lake.at(f"s3://{bucket}/lake", Storage(options))


def a_night_and_another(lake: Lake) -> None:
    """Commits, a replaced segment, recovery, compaction; and a video that is forgotten."""
    for number, videos in enumerate((("a", "b"), ("c",), ("a",)), 1):
        fence = NoFence(number=number)
        commit_segments(lake, [segment(video) for video in videos], RUN, fence)
        recover(lake, fence)
    compact(lake, NoFence(number=4), 1 << 20)
    begin(lake, {"/v/b.mp4"}, NoFence(number=5))
    erase(lake, NoFence(number=5), {"/v/b.mp4"})


def seen(lake: Lake) -> list[tuple[str, int]]:
    rows = live_rows(lake, "annotations")
    return sorted(zip(rows["video_id"].to_pylist(), rows["window"].to_pylist(), strict=True))


def expected() -> list[tuple[str, int]]:
    return [(video, window) for video in "ac" for window in range(2)]


def test_a_bucket_with_versioning_shows_the_newest_and_keeps_the_rest(lake: Lake) -> None:
    bucket = lake.root.partition("/")[0]
    enabled = {"Status": "Enabled"}
    lake.fs.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration=enabled)
    a_night_and_another(lake)
    assert seen(lake) == expected()
    assert [len(lake.files(table)) for table in (*DATA_TABLES, LEDGER)] == [1, 1, 1]
    told = lake.fs.call_s3("list_object_versions", Bucket=bucket, Prefix="lake/annotations/")
    assert len(told["Versions"]) > 1, "what docs/reliability.md tells of a lifecycle rule"


def test_other_peoples_objects_are_neither_read_nor_removed_nor_asked_for(lake: Lake) -> None:
    spent = []
    partition = "corpus=c/date=2026-01-31"
    names = ("theirs.parquet", "_SUCCESS", ".keep", "20260131.parquet", "deadbeef-cafe.parquet")
    theirs = [f"{table}/{partition}/{n}" for table in (*DATA_TABLES, LEDGER) for n in names]
    for path in theirs:
        lake.fs.pipe_file(lake.path(path), b"no parquet of ours")
    a_night_and_another(lake)
    for _ in range(2):
        before = ours()
        recover(lake, NoFence(number=6))
        spent.append(ours().since(before)["requests"])
        for k in range(40):  # beside the tables
            lake.fs.pipe_file(lake.path(f"other/{k}.bin"), b"x")
    assert seen(lake) == expected()
    assert all(lake.fs.cat_file(lake.path(path)) == b"no parquet of ours" for path in theirs)
    assert spent[0] == spent[1], "requests do not grow with them"


def test_uploads_that_a_killed_writer_left_half_done_are_given_up(lake: Lake) -> None:
    lease = Lease.acquire(lake, "run")
    commit_segments(lake, [segment("a")], RUN, lease.fence)
    bucket = lake.root.partition("/")[0]

    def begun(number: int) -> Any:
        path = lake.data_path("tracks", "c", "2026-01-31", new_commit_id(number))
        key = path.partition("/")[2]
        lake.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
        return key

    begun(lease.number - 1)
    living, theirs = begun(lease.number), "lake/tracks/theirs.parquet"
    lake.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=theirs)
    recover(lake, lease.fence)
    lease.release()
    left = lake.fs.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]
    assert {upload["Key"] for upload in left} == {living, theirs}
    assert live_rows(lake, "tracks").num_rows == 1


def test_a_store_that_lets_nobody_give_up_uploads_is_recovered_all_the_same(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_segments(lake, [segment("a")], RUN, NoFence(number=1))
    bucket, _, key = lake.data_path("tracks", "c", "2026-01-31", new_commit_id(1)).partition("/")
    lake.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    real, refused = lake.fs.call_s3, []

    def call_s3(method: str, **arguments: Any) -> Any:
        if method == "abort_multipart_upload":
            refused.append(arguments["Key"])
            raise PermissionError("AccessDenied")
        return real(method, **arguments)

    monkeypatch.setattr(lake.fs, "call_s3", call_s3)
    recover(lake, NoFence(number=2))
    assert refused == [key]
    assert live_rows(lake, "tracks").num_rows == 1
