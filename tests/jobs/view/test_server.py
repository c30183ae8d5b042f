"""`emolake view` over HTTP: what it shows, what it keeps, and whom it turns away."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import requests
import urllib3

from emolake.jobs.cli import main
from emolake.jobs.view.server import listening
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.compaction import compact
from emolake.pipeline.lake.labels import Labels
from emolake.pipeline.lake.layout import LABELS, Lake
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.presentation.blur import blurred
from emolake.pipeline.storage.files import Storage
from tests.conftest import S3
from tests.jobs.view.archive import (
    EMOTIONS,
    FACE,
    HEIGHT,
    SECONDS,
    WIDTH,
    Served,
    left_at,
    served,
    small_archive,
    video,
    walk,
)
from tests.pipeline.lake.test_lake import RUN, NoFence, no_fence, segment


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """To be read and not written."""
    return small_archive(tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def shown(lake: Lake) -> Iterator[Served]:
    with served(lake) as found:
        yield found


@pytest.fixture
def fresh(lake: Lake, tmp_path: Path) -> Lake:
    """The same, to be written."""
    shutil.copytree(lake.root, tmp_path / "out")
    return Lake.at(str(tmp_path / "out"), Storage())


# Whom it turns away.


def test_it_listens_to_this_machine_alone() -> None:
    with listening(0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_without_the_token_nobody_gets_anything(shown: Served) -> None:
    for path in ("/", "/view.js", "/api/next", "/api/video/walk", "/media/walk", "/still/walk"):
        assert requests.get(shown.address + path, timeout=30).status_code == 403, path
        assert requests.get(f"{shown.address}{path}?token=guess", timeout=30).status_code == 403
    told = {"video_id": "walk", "segment": 0, "track_id": 0, "window": 0, "label": "anger"}
    answer = requests.post(f"{shown.address}/api/say", json=told | {"kind": "emotion"}, timeout=30)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": "localhost:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_pages_of_the_browser_get_nothing_with_its_cookie(
    shown: Served, headers: dict[str, str]
) -> None:
    assert shown.get("/api/video/walk", headers=headers).status_code == 403
    told = {"kind": "emotion", "label": "anger", "video_id": "walk", "segment": 0, "track_id": 0}
    assert shown.post("/api/say", told | {"window": 0}, headers=headers).status_code == 403
    assert Labels.of(shown.viewer.index.lake).rows == {}


def test_a_form_of_another_kind_is_refused(shown: Served) -> None:
    sent = '{"kind": "emotion"}'
    answer = shown.session.post(
        f"{shown.address}/api/say", data=sent, headers={"Content-Type": "text/plain"}, timeout=30
    )
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "path",
    [
        "/media/..%2f..%2f..%2fetc%2fpasswd",
        "/media/%2fetc%2fpasswd",
        "/still/..",
        "/remade/..%2f/0",
        "/index.py",
        "/..%2findex.py",
        "/base.html.j2",
        "/video/nobody",
        "/media/' or 1=1 --",
    ],
)
def test_no_path_leads_out_of_the_output(shown: Served, path: str) -> None:
    answer = shown.session.prepare_request(requests.Request("GET", shown.address))
    answer.url = shown.address + path  # as it is, not made tidy
    assert shown.session.send(answer, timeout=30).status_code == 404


def test_pages_may_load_nothing_from_elsewhere_and_are_not_kept(shown: Served) -> None:
    for path in ("/", "/video/walk", "/review"):
        answer = shown.get(path)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert not re.findall(r"https?://", answer.text)


# What it shows.


def test_the_archive_page_counts_by_facet_and_its_address_is_the_filter(shown: Served) -> None:
    page = shown.get("/").text
    assert "18 moments" in page
    one = shown.get("/?emotion=neutral&model=m&corpus=other").text
    assert "2 moments" in one
    assert "gone.mp4" in one
    assert "walk.mp4" not in one
    assert "6 moments" in shown.get("/?words=MORNING").text
    assert "1 moment<" in shown.get("/?video=old&sure_from=60&sure_to=80").text
    assert "No moment is like that" in shown.get("/?person=4").text


@pytest.mark.parametrize(
    "asked",
    [
        *("sort=loud", "person=ann", "page=0", "page=x", "sure_from=much", "sure_to=nan"),
        f"page={'9' * 5000}",
        "queue=best",
        "queue=random&seed=--5",
        "queue=random&seed=" + "9" * 20,
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(shown: Served, asked: str) -> None:
    answer = shown.get(f"/{'review' if 'queue' in asked else ''}?{asked}")
    assert answer.status_code == 400
    assert "\n" not in answer.text
    assert len(answer.text) < 200


@pytest.mark.parametrize("at", ["nan", "inf", "-5", "soon"])
def test_a_still_is_of_a_time(shown: Served, at: str) -> None:
    assert shown.get(f"/still/walk?at={at}").status_code == 400


def test_a_cookie_that_is_no_text_is_refused_like_another(shown: Served) -> None:
    port = int(shown.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: emolake-{port}=".encode()
        connection.sendall(head + b"\xff\r\nConnection: close\r\n\r\n")
        assert b" 403 " in connection.makefile("rb").readline()


def test_a_facet_may_hold_a_comma(tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "out"), Storage())
    commit_segments(lake, [video("/v/a.mp4", "a", corpus="news, old")], RUN, no_fence)
    with served(lake) as found:
        link = re.search(r'href="(/\?corpus=[^"]+)"', found.get("/").text)
        assert link is not None
        assert "3 moments" in found.get(link[1]).text


def test_values_of_a_filter_are_no_sql(shown: Served) -> None:
    for asked in (
        "emotion=x') or true --",
        "video=%' or 1=1 --",
        "words='; drop table windows; --",
    ):
        assert "No moment is like that" in shown.get(f"/?{asked}").text
    assert "18 moments" in shown.get("/").text


def test_names_of_videos_are_text_in_pages(tmp_path: Path) -> None:
    nasty = tmp_path / "<script>alert(1)<" / "b>&'\".mp4"
    lake = Lake.at(str(tmp_path / "out"), Storage())
    commit_segments(lake, [video(nasty, "nasty")], RUN, no_fence)
    with served(lake) as found:
        for path in ("/", "/video/nasty", "/review"):
            assert "<script>alert" not in found.get(path).text


def test_a_video_is_told_with_its_lanes_and_where_its_faces_are(shown: Served) -> None:
    told = shown.get("/api/video/walk").json()
    assert [lane["model"] for lane in told["lanes"]] == ["m", "n"]
    assert [w["emotion"] for w in told["lanes"][0]["windows"]] == list(EMOTIONS)
    assert told["lanes"][0]["windows"][1]["transcript"] == "good morning"
    assert told["lanes"][0]["windows"][0]["scores"] == [["happiness", 0.9], ["fear", 0.1]]
    (track,) = told["paths"]
    assert track["path"][2][:2] == [1.0, pytest.approx(left_at(1.0) / WIDTH, abs=1e-4)]
    assert (told["duration_s"], told["remade"]) == (SECONDS, None)
    assert shown.get("/api/video/empty").json()["lanes"] == []


def test_blind_nothing_is_told_that_anybody_answered(fresh: Lake) -> None:
    with served(fresh) as found:
        assert found.say("walk", 0, "anger").status_code == 200
        text = found.get("/api/video/walk?blind=1").text
        told = json.loads(text)
        assert [len(lane["windows"]) for lane in told["lanes"]] == [3], "one lane, whoever read it"
        for secret in (*EMOTIONS, "anger", '"ann"', "confidence", "scores"):
            assert secret not in text


def test_bytes_of_a_video_come_by_range_and_never_more_than_asked(
    shown: Served, lake: Lake
) -> None:
    path = Path(lake.root).parent / "films" / "walk.mp4"
    whole = path.read_bytes()
    assert shown.get("/media/walk").content == whole
    for asked, start, stop in (
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, len(whole)),
        ("bytes=-50", len(whole) - 50, len(whole)),
        (f"bytes=10-{10 * len(whole)}", 10, len(whole)),
    ):
        answer = shown.get("/media/walk", headers={"Range": asked})
        assert answer.status_code == 206
        assert answer.content == whole[start:stop]
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
    for empty in (f"bytes={len(whole)}-", "bytes=-0"):
        assert shown.get("/media/walk", headers={"Range": empty}).status_code == 416
    for ignored in ("items=0-5", "bytes=0-1,4-5", "bytes=-"):
        answer = shown.get("/media/walk", headers={"Range": ignored})
        assert (answer.status_code, len(answer.content)) == (200, len(whole))
    head = shown.session.head(f"{shown.address}/media/walk", timeout=30)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(whole)))


def test_a_video_that_shrinks_while_it_is_sent_ends_the_answer_and_begins_no_other(
    tmp_path: Path,
) -> None:
    film = tmp_path / "large.mp4"
    film.write_bytes(bytes(40 << 20))
    lake = Lake.at(str(tmp_path / "out"), Storage())
    commit_segments(lake, [video(film, "large")], RUN, no_fence)
    with served(lake) as found:
        answer = found.get("/media/large", stream=True)
        first = answer.raw.read(1000)
        film.write_bytes(b"")
        with suppress(urllib3.exceptions.HTTPError):
            while part := answer.raw.read(1 << 20):
                first += part
        assert len(first) < 40 << 20
        assert b"HTTP/1.1" not in first


def test_a_still_shows_the_moment_and_the_face(shown: Served) -> None:
    whole = picture(shown.get("/still/walk?at=3").content)
    assert whole.shape[:2] == (HEIGHT, WIDTH)
    left = round(left_at(3))
    inside, outside = whole[80:160, left + 5 : left + FACE - 5], whole[:60]
    assert inside.std() > 20 > outside.std()
    box = f"{left / WIDTH},{70 / HEIGHT},{(left + FACE) / WIDTH},{(70 + FACE) / HEIGHT}"
    assert picture(shown.get(f"/still/walk?at=3&box={box}").content).shape[0] < HEIGHT
    leaving = picture(shown.get("/still/walk?at=3&box=-0.2,0.1,0.1,0.5").content)
    assert leaving.shape[1] < WIDTH, "a face may be half out of the picture"
    assert picture(shown.get("/still/walk?at=900").content).shape == whole.shape, (
        "the last there is"
    )


def picture(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "why"), [("avi", "mpeg4 in avi"), ("fields", "mpeg2video")])
def test_what_browsers_do_not_play_is_remade_around_the_moment(
    shown: Served, name: str, why: str, tmp_path: Path
) -> None:
    assert why in shown.get(f"/api/video/{name}").json()["remade"]
    answer = shown.get(f"/remade/{name}/0")
    assert float(answer.headers["X-Begins"]) == pytest.approx(0, abs=0.11)
    (tmp_path / "remade.mp4").write_bytes(answer.content)
    with av.open(str(tmp_path / "remade.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = [
            (f.time, f.to_ndarray(format="rgb24"), f.interlaced_frame)
            for f in container.decode(stream)
        ]
    assert len(frames) == pytest.approx(SECONDS * 10, abs=2)
    assert not any(interlaced for _, _, interlaced in frames)
    for time_s, frame, _ in frames[5::20]:
        across = frame[80:150].std(axis=(0, 2))
        middle = np.average(np.arange(WIDTH), weights=np.maximum(across - 5, 0))
        assert middle == pytest.approx(left_at(time_s) + FACE / 2, abs=14), "at its own time"
    assert shown.get(f"/remade/{name}/1").status_code == 404, "it ends before"


def test_a_video_that_moved_or_is_cut_off_says_so_and_the_rest_goes_on(shown: Served) -> None:
    assert shown.get("/api/video/gone").json()["gone"].startswith("not_found")
    assert shown.get("/api/video/cut").json()["gone"].startswith("truncated")
    assert shown.get("/still/gone?at=1").status_code == 404
    assert shown.get("/still/cut?at=1").status_code == 404
    assert shown.get("/media/gone").status_code == 404
    assert shown.get("/remade/gone/0").status_code == 404
    assert shown.get("/still/walk?at=1").status_code == 200


def test_a_decoder_that_dies_costs_one_picture(shown: Served) -> None:
    assert shown.get("/still/walk?at=0.5").status_code == 200
    decoders = list(shown.viewer.pictures._children.queue)
    running = [decoder.child.pid for decoder in decoders if decoder.child.pid is not None]
    assert running
    for pid in running:
        subprocess.run(["kill", "-SEGV", str(pid)], check=True)
    answers = [shown.get(f"/still/walk?at=2.{k}").status_code for k in range(6)]
    assert answers.count(200) >= 6 - len(running)
    assert answers[-2:] == [200, 200]


def test_with_blurred_faces_no_recognisable_one_leaves(lake: Lake, tmp_path: Path) -> None:
    with served(lake) as plain, served(lake, blur=True) as found:
        assert found.get("/media/walk").status_code == 403
        assert found.get("/api/video/walk").json()["remade"] == "faces are blurred"
        left = round(left_at(3))
        there = np.s_[80:160, left + 5 : left + FACE - 5]
        both = (picture(s.get("/still/walk?at=3").content) for s in (plain, found))
        fine = [float(cv2.Laplacian(p[there], cv2.CV_64F).std()) for p in both]
        assert fine[1] < 0.2 * fine[0]
        (tmp_path / "remade.mp4").write_bytes(found.get("/remade/walk/0").content)
    with av.open(str(tmp_path / "remade.mp4")) as container:
        for frame in container.decode(video=0):
            left = round(left_at(frame.time))
            part = frame.to_ndarray(format="rgb24")[80:160, left + 5 : left + FACE - 5]
            assert cv2.Laplacian(part, cv2.CV_64F).std() < 0.35 * fine[0], frame.time


@pytest.mark.parametrize("fps", [0.5, 1.0])
def test_a_face_that_was_looked_for_seldom_is_blurred_all_the_while(
    lake: Lake, tmp_path: Path, fps: float
) -> None:
    seldom = Lake.at(str(tmp_path / "out"), Storage())
    row = video(walk(tmp_path / "walk.mp4"), "walk")
    for track in row["tracks"]:
        track["path"] = [point for point in track["path"] if point["time_s"] % (1 / fps) == 0]
    commit_segments(seldom, [row], RUN, no_fence)
    with served(seldom, blur=True) as found:
        for time_s in (0.4, 1.0, 1.7, 2.5, 5.2, 5.8):
            still = picture(found.get(f"/still/walk?at={time_s}").content)
            left = round(left_at(time_s))
            part = still[80:160, left + 5 : left + FACE - 5]
            assert cv2.Laplacian(part, cv2.CV_64F).std() < 8, time_s


def test_of_a_close_up_nothing_stays() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    for box in ((0.0, 0.0, 1.0, 1.0), (0.0, 0.2, 0.3, 0.8), (0.7, 0.7, 1.0, 1.0)):
        left, top, right, bottom = (round(200 * side) for side in box)
        face = np.s_[top:bottom, left:right]
        same = (blurred(noise, [np.array(box)])[face] == noise[face]).all(2)
        assert same.mean() < 0.01


def test_stored_pictures_of_faces_are_not_shown_where_faces_are_blurred(tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "out"), Storage())
    row = video("/v/a.mp4", "a")
    row["tracks"][0]["thumbnail"] = b"a face"
    commit_segments(lake, [row], RUN, no_fence)
    for blur in (False, True):
        with served(lake, blur=blur) as found:
            shown = "data:image/jpeg" in found.get("/report").text
            assert shown is not blur


def test_blurred_goes_by_the_time_of_the_frame_that_is_shown(lake: Lake) -> None:
    with served(lake, blur=True) as found:
        last = picture(found.get("/still/walk?at=900").content)
    left = round(left_at(SECONDS - 0.1))
    part = last[80:160, left + 5 : min(left + FACE - 5, WIDTH)]
    assert cv2.Laplacian(part, cv2.CV_64F).std() < 10


@pytest.mark.parametrize(
    "changes",
    [
        {"n_segments": 2},
        {"n_dropped_tracks": 1},
        {"tracks": [segment("walk")["tracks"][0]]},  # where, nobody knows
        {"failed": True, "reason": "timeout", "annotations": [], "tracks": []},
    ],
)
def test_of_what_was_not_analysed_whole_all_is_blurred(tmp_path: Path, changes: dict) -> None:
    lake = Lake.at(str(tmp_path / "out"), Storage())
    film = walk(tmp_path / "walk.mp4")
    commit_segments(lake, [video(film, "walk") | changes], RUN, no_fence)
    with served(lake, blur=True) as found:
        assert "not all of it was analysed" in found.get("/api/video/walk").json()["remade"]
        whole = picture(found.get("/still/walk?at=3").content)
        assert cv2.Laplacian(whole, cv2.CV_64F).std() < 10


def test_stretches_are_remade_anew_for_what_was_read_anew(tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "out"), Storage())
    film = walk(tmp_path / "walk.mp4")
    commit_segments(lake, [video(film, "walk")], RUN, no_fence)
    with served(lake, blur=True) as found:
        before = found.get("/remade/walk/0").content
        commit_segments(
            lake, [video(film, "walk") | {"n_dropped_tracks": 1}], RUN, NoFence(number=2)
        )
        assert found.post("/api/read", {}).ok
        assert found.get("/remade/walk/0").content != before


# What it keeps.


def test_a_word_is_stored_at_once_and_taken_back_by_another(fresh: Lake) -> None:
    with served(fresh) as found:
        assert (
            found.say("walk", 1, "Happy", blind=True, queue={"queue": "random"}).status_code == 200
        )
        (row,) = Labels.of(fresh).standing()
        assert (row["label"], row["reviewer"], row["revision"]) == ("happiness", "ann", 1)
        assert (row["emotion"], row["model"], row["blind"]) == ("neutral", "m", True)
        assert row["queue"] == "random windows, seed 0"
        assert (row["start_s"], row["end_s"], row["config_hash"]) == (2.0, 4.0, RUN.config_hash)
        assert "people: happiness" in found.get("/").text
        assert "2 moments" in found.get("/?reviewed=yes").text, "of both models"
        assert found.say("walk", 1, None).status_code == 200
        assert Labels.of(fresh).standing() == []
        assert len(Labels.of(fresh).rows) == 2, "nothing is written over"
    with served(fresh) as again:
        assert again.get("/api/video/walk").json()["labels"] == []


@pytest.mark.parametrize(
    "told",
    [
        {"label": "hungry"},
        {"kind": "mood"},
        {"window": 9},
        {"track_id": None},
        {"video_id": ["walk"]},
        {"label": 3},
        {"queue": {"queue": "best"}},
        {"queue": "best"},
        {"reviewer": "somebody else"},
    ],
)
def test_what_is_no_word_of_a_window_is_refused_and_nothing_is_stored(
    shown: Served, told: dict
) -> None:
    sent = {
        "video_id": "walk", "segment": 0, "track_id": 0, "window": 0, "kind": "emotion",
        "label": "anger",
    }  # fmt: skip
    answer = shown.post("/api/say", sent | told)
    assert (answer.status_code, answer.text.count("\n")) == (400, 0), answer.text
    assert Labels.of(shown.viewer.index.lake).rows == {}


def test_two_views_at_once_see_each_others_words_and_lose_none(fresh: Lake) -> None:
    with served(fresh, "ann") as one, served(fresh, "bo") as other:
        one.viewer._others_at = other.viewer._others_at = 0.0
        assert one.say("walk", 0, "anger").ok
        assert other.say("walk", 0, "fear").ok
        assert one.say("walk", 0, "sadness").ok
        told = [label["label"] for label in other.get("/api/video/walk").json()["labels"]]
        assert sorted(told) == ["fear", "sadness"]
    assert len(Labels.of(fresh).rows) == 3


def test_a_hundred_requests_at_a_time_are_all_answered(fresh: Lake) -> None:
    with served(fresh) as found:

        def ask(k: int) -> int:
            if k % 4 == 0:
                return found.say("walk", k % 3, EMOTIONS[k // 4 % 3]).status_code
            path = ("/", f"/still/walk?at={k / 20}", "/media/walk")[k % 4 - 1]
            return found.get(path).status_code

        with ThreadPoolExecutor(100) as pool:
            assert set(pool.map(ask, range(100))) == {200}
    rows = Labels.of(fresh).rows.values()
    assert len(rows) == 25
    for window in range(3):
        revisions = sorted(row["revision"] for row in rows if row["window"] == window)
        assert revisions == list(range(1, len(revisions) + 1))


def test_a_browser_that_leaves_while_it_saves_leaves_a_whole_word(fresh: Lake) -> None:
    with served(fresh) as found:
        cookie = "; ".join(f"{c.name}={c.value}" for c in found.session.cookies)
        body = json.dumps(
            {
                "video_id": "walk",
                "segment": 0,
                "track_id": 0,
                "window": 0,
                "kind": "emotion",
                "label": "anger",
            }
        )
        host = found.address.removeprefix("http://")
        head = (
            f"POST /api/say HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        for sent in (head + body[:40], head + body):
            with socket.create_connection(("127.0.0.1", int(host.split(":")[1]))) as connection:
                connection.sendall(sent.encode())
        for _ in range(100):
            if Labels.of(fresh).rows:
                break
            threading.Event().wait(0.1)
        (row,) = Labels.of(fresh).rows.values()
        assert row["label"] == "anger"
        assert found.get("/").ok


def test_of_a_video_forgotten_in_the_meantime_nothing_is_stored(fresh: Lake, capsys) -> None:
    with served(fresh) as found:
        assert found.say("walk", 0, "anger").ok
        uri = found.get("/api/video/walk").json()["uri"]
        assert main(["forget", fresh.uri, uri]) == 0
        told = found.say("walk", 1, "anger")
        assert (told.status_code, "forgotten" in told.text) == (400, True)
    assert not fresh.files(LABELS)


def test_a_full_disk_is_told_and_the_word_is_not_taken_for_stored(fresh: Lake, monkeypatch) -> None:
    with served(fresh) as found:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Lake, "create_table", full)
        answer = found.say("walk", 0, "anger")
        assert answer.status_code == 502
        assert "No space left" in answer.text
        monkeypatch.undo()
        assert found.get("/api/video/walk").json()["labels"] == []
        assert found.say("walk", 0, "anger").ok


def test_an_output_in_use_can_be_looked_at_and_corrected(fresh: Lake) -> None:
    lease = Lease.acquire(fresh, "a-run")
    try:
        with served(fresh) as found:
            assert found.say("walk", 0, "anger").ok
            commit_segments(fresh, [video("/v/new.mp4", "new")], RUN, no_fence)
            compact(fresh, NoFence(number=lease.number), 1 << 20)
            told = found.get("/api/video/walk")
            assert told.ok, "its files are other ones by now"
            assert [label["label"] for label in told.json()["labels"]] == ["anger"]
            assert found.get("/api/video/new").ok, "what came meanwhile is there too"
    finally:
        lease.release()


def test_windows_that_were_cut_otherwise_since_are_asked_for_anew(fresh: Lake) -> None:
    with served(fresh) as found:
        for window in range(3):
            assert found.say("avi", window, "anger").ok
        row = video(Path(fresh.root).parent / "old.avi", "avi")
        for annotation in row["annotations"]:
            annotation |= {"start_s": annotation["start_s"] / 2, "end_s": annotation["end_s"] / 2}
        uri = found.get("/api/video/avi").json()["uri"]
        commit_segments(fresh, [row | {"uri": uri}], RUN, NoFence(number=2))
        assert found.post("/api/read", {}).ok
        assert found.get("/api/next").json()["done"] == 0
        assert "No moment is like that" in found.get("/?reviewed=yes").text


def test_asked_blind_nobody_is_told_how_often_the_model_was_right(fresh: Lake) -> None:
    with served(fresh) as found:
        assert found.say("walk", 0, "happiness").ok
        assert found.get("/api/next").json()["taught"]["right"] == 1
        assert found.get("/api/next?blind=1").json()["taught"] is None


# What it asks.


def answered(found: Served, queue: str, most: int = 99) -> list[tuple[str, int]]:
    asked = []
    while (item := found.get(f"/api/next?{queue}").json()["item"]) and len(asked) < most:
        asked.append((item["video_id"], item["window"]))
        assert found.say(*asked[-1], "anger", queue=dict(p.split("=") for p in queue.split("&"))).ok
    return asked


def test_a_queue_is_the_same_again_goes_on_where_it_was_and_ends(
    lake: Lake, tmp_path: Path
) -> None:
    outputs = [shutil.copytree(lake.root, tmp_path / name) for name in ("one", "two")]
    first, second = (Lake.at(str(path), Storage()) for path in outputs)
    with served(first) as found:
        asked = answered(found, "queue=random&seed=3", 6)
    with served(first) as again:
        asked += answered(again, "queue=random&seed=3")
        assert again.get("/api/next?queue=random&seed=3").json()["done"] == 15
    with served(second) as other:
        assert answered(other, "queue=random&seed=3") == asked
    assert len(set(asked)) == len(asked) == 15
    with served(second, "bo") as bo:
        assert answered(bo, "queue=random&seed=4") != asked, "another reviewer, another seed"


def test_what_is_asked_at_random_is_what_measure_draws(fresh: Lake, capsys) -> None:
    with served(fresh) as found:
        asked = answered(found, "queue=random&seed=1", 5)
        found.say("avi", 0, "anger")
    assert main(["measure", fresh.uri, "--draw", "5", "--audit", f"{fresh.root}.csv", "--seed", "1",
                 "--reading", "m"]) == 0  # fmt: skip
    drawn = Path(f"{fresh.root}.csv").read_text().splitlines()[1:]
    windows = {"walk.mp4": "walk", "old.avi": "avi", "fields.mpg": "fields"}
    named = [(windows.get(Path(row.split(",")[0]).name, Path(row.split(",")[0]).stem), int(row.split(",")[5]))
             for row in drawn]  # fmt: skip
    assert named == asked


@pytest.mark.parametrize("queue", ["uncertain", "disagree", "rare"])
def test_each_queue_has_its_order(fresh: Lake, queue: str) -> None:
    with served(fresh) as found:
        asked = answered(found, f"queue={queue}")
    if queue == "uncertain":
        assert {window for _, window in asked[:5]} == {2}, "the least sure first"
    elif queue == "disagree":
        assert {name for name, _ in asked} == {"walk"}
        assert {window for _, window in asked} == {0, 2}, "where both said neutral is left out"
    else:
        assert {window for _, window in asked[:3]} == {0, 1, 2}, "each emotion in turn"


def test_a_queue_takes_turns(fresh: Lake) -> None:
    with served(fresh) as found:
        asked = answered(found, "queue=random&per=corpus", 4)
    in_other = [name in ("gone", "cut") for name, _ in asked]
    assert in_other[:2] in ([True, False], [False, True])
    assert in_other[2:] in ([True, False], [False, True])


# The command.


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_prints_its_address_serves_and_leaves_nothing_when_it_ends(
    lake: Lake, tmp_path: Path, ending: signal.Signals
) -> None:
    command = [sys.executable, "-m", "emolake.jobs", "view", lake.uri, "--no-browser"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whatever started the suite
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{20,}\n", line)
        page, token = line.strip().split("?")
        assert "18 moments" in requests.get(f"{page}?{token}", timeout=60).text
        assert requests.get(f"{page}remade/avi/0?{token}", timeout=60).ok
        port = line.split(":")[2].split("/")[0]
        assert main(["view", lake.uri, "--no-browser", "--port", port]) == 2
        process.send_signal(ending)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--port", "x"], "port"),
        (["--queue", "best"], "queue"),
        (["--seed", "x"], "seed"),
        (["--seed", "9" * 20], "seed"),
    ],
)
def test_bad_options_are_one_line(lake: Lake, more: list[str], told: str, capsys) -> None:
    assert main(["view", lake.uri, "--no-browser", *more]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_what_is_no_output_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["view", str(tmp_path), "--no-browser"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_an_archive_in_an_object_store_is_shown_and_corrected_there(
    s3: S3, tmp_path: Path, monkeypatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    plain = walk(tmp_path / "walk.mp4")
    s3.fs().put(str(plain), f"{s3.bucket}/view/walk.mp4")
    lake = Lake.at(f"s3://{s3.bucket}/view/out", Storage())
    commit_segments(lake, [video(f"s3://{s3.bucket}/view/walk.mp4", "walk")], RUN, no_fence)
    with served(lake) as found:
        answer = found.get("/media/walk", headers={"Range": "bytes=5-24"})
        assert answer.content == plain.read_bytes()[5:25]
        assert picture(found.get("/still/walk?at=3").content).shape[:2] == (HEIGHT, WIDTH)
        assert found.say("walk", 0, "anger").ok
        for secret in (s3.env["AWS_SECRET_ACCESS_KEY"], s3.env["AWS_ACCESS_KEY_ID"]):
            assert secret not in found.get("/").text + found.get("/api/video/walk").text
    assert [row["label"] for row in Labels.of(lake).standing()] == ["anger"]
