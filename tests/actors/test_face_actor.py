import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from emolake.actors import face_actor, face_child
from emolake.actors.child import Child, ChildDied, ChildTimedOut
from emolake.actors.face_actor import FaceActor, FaceSettings, SegmentPlanner, _as_json
from emolake.pipeline.config import DecodeConfig, FacesConfig, LimitsConfig, WindowsConfig
from emolake.pipeline.corpus.segments import segment_rows, without_faces
from emolake.pipeline.errors import DeviceFailed, JobFailed
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.lake.schema import FACES_ROW, SEGMENT_ROW, VIDEO_ROW
from emolake.pipeline.video.decode import VideoInfo
from tests.conftest import ROOT, SMALL_CROPS
from tests.pipeline.video.test_transcripts import CUES, subtitled

POISON = "tests.actors.poison_child"


def settings(**limits: Any) -> FaceSettings:
    return FaceSettings(
        DecodeConfig(), FacesConfig(), WindowsConfig(), LimitsConfig(**limits), SMALL_CROPS
    )


def videos(*paths: Path, **changes: Any) -> pa.Table:
    rows = [
        {
            "video_id": path.stem, "uri": str(path), "size": None, "corpus": "c", "attempt": 1,
            "segments": None, "age": None, "gender": None, "race": None, "missing": None,
        } | changes
        for path in paths
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, VIDEO_ROW)


def run(actor: SegmentPlanner | FaceActor, table: pa.Table) -> list[dict[str, Any]]:
    out = actor(table)
    assert out.schema == (FACES_ROW if isinstance(actor, FaceActor) else SEGMENT_ROW)
    return out.to_pylist()


@pytest.fixture
def poisoned(monkeypatch) -> None:
    monkeypatch.setattr(face_actor, "_CHILD", POISON)


@pytest.fixture
def planner(poisoned) -> SegmentPlanner:
    return SegmentPlanner(settings(segment_timeout_seconds=20))


@pytest.fixture
def actor(poisoned) -> FaceActor:
    return FaceActor(settings(segment_timeout_seconds=20, timeout_per_video_second=0))


def test_a_portrait_gives_one_track_with_its_windows(demo_videos) -> None:
    face_settings = settings()
    segments = SegmentPlanner(face_settings)(videos(demo_videos / "portrait.mp4"))
    (row,) = run(FaceActor(face_settings), segments)
    assert not row["failed"]
    assert len(row["tracks"]) == 1
    assert [w["window"] for w in row["windows"]] == [0, 1, 2]
    assert row["windows"][0]["crops"][0]["pictures"][0].startswith(b"\x89PNG")
    assert len(row["windows"][0]["features"][0]) == 256


def crowd(windows: int) -> dict[str, Any]:
    """A row of schema.FACES_ROW with so many windows, as the face stage makes them."""
    info = VideoInfo(12.0, 25.0, 64, 48, "h264")
    (segment,) = segment_rows(videos(Path("/v.mp4")).to_pylist()[0], info, DecodeConfig())
    window = {"crops": [{"pictures": [b"png"], "landmarks": [np.zeros(10, np.float32)]}]}
    shown = [
        window | {"track_id": k, "features": [np.full(256, k, np.float32)]} for k in range(windows)
    ]
    sound = {"start_s": 0.0, "samples": b"1234"}
    return without_faces(segment) | {"windows": shown, "sound": sound, "video_seconds": 12.0}


@pytest.mark.parametrize("windows", [0, 1, 2, 5])
def test_a_crowds_windows_leave_the_child_in_parts_and_are_one_row_again(
    monkeypatch, windows: int
) -> None:
    monkeypatch.setattr(face_child, "_WINDOWS_A_PART", 2)
    row = crowd(windows)
    whole = pa.Table.from_pylist([row], FACES_ROW)
    parts = pa.ipc.open_stream(face_child._as_arrow(row)).read_all()
    assert parts.num_rows == max(1, (windows + 1) // 2)
    assert sum(sound is not None for sound in parts["sound"].to_pylist()) == 1
    assert face_actor._whole(parts).equals(whole)


def test_a_crowd_that_no_row_can_hold_fails_with_what_to_change(monkeypatch) -> None:
    # Three windows of a gigabyte that is nowhere written.
    ends, nothing = np.array([0, 2**30], np.int32), np.zeros(2**30, np.uint8)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(nothing)]
    one = pa.array([0, 1], pa.int32())
    of_window = FACES_ROW.field("windows").type.value_type
    of_crops = of_window.field("crops").type.value_type
    pictures = pa.ListArray.from_arrays(one, pa.Array.from_buffers(pa.binary(), 1, buffers))
    crops = pa.StructArray.from_arrays(
        [pictures, pa.nulls(1, of_crops.field("landmarks").type)], fields=list(of_crops)
    )
    window = pa.StructArray.from_arrays(
        [
            pa.ListArray.from_arrays(one, crops) if f.name == "crops" else pa.nulls(1, f.type)
            for f in of_window
        ],
        fields=list(of_window),
    )
    rest = pa.Table.from_pylist([crowd(0)] * 3, FACES_ROW)
    place = FACES_ROW.get_field_index("windows")
    huge = pa.chunked_array([pa.ListArray.from_arrays(one, window)] * 3)
    parts = rest.set_column(place, FACES_ROW.field(place), huge)

    class Answer:
        read_all = staticmethod(lambda: parts)

    actor = FaceActor(settings())
    monkeypatch.setattr(actor._decoder, "ask", lambda *_: b"")
    monkeypatch.setattr(face_actor.pa.ipc, "open_stream", lambda _: Answer)
    segments = pa.Table.from_pylist([crowd(0)], SEGMENT_ROW)
    (row,) = actor(segments).to_pylist()
    assert (row["reason"], row["windows"]) == ("out_of_memory", [])
    assert row["detail"] == "3 windows of faces at once; lower decode.segment_seconds"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("segv", "decoder_crashed"), ("exit", "decoder_crashed"), ("memory", "out_of_memory")],
)
def test_poison_costs_its_own_segment_only(
    planner, actor, demo_videos, tmp_path, name: str, reason: str
) -> None:
    good = [shutil.copy(demo_videos / "no_face.mp4", tmp_path / f"good{k}.mp4") for k in (0, 1)]
    poison = shutil.copy(demo_videos / "no_face.mp4", tmp_path / f"{name}.mp4")
    table = videos(good[0], poison, good[1])
    planned = run(planner, table)
    assert [row["reason"] for row in planned] == [None, reason, None]
    # The same segment in the face stage, as if only decoding it were poisonous.
    innocent = pa.Table.from_pylist(
        [row | {"failed": False, "reason": None} for row in planned], SEGMENT_ROW
    )
    found = run(actor, innocent)
    assert [row["reason"] for row in found] == [None, reason, None]
    assert [row["failed"] for row in found] == [False, True, False]
    assert [row["frames_seen"] > 0 for row in found] == [True, False, True]


def test_a_hanging_decoder_is_stopped_at_its_timeout(poisoned, demo_videos, tmp_path) -> None:
    planner = SegmentPlanner(settings(segment_timeout_seconds=1))
    hang = shutil.copy(demo_videos / "no_face.mp4", tmp_path / "hang.mp4")
    planner(videos(demo_videos / "no_face.mp4"))  # the start of the child is not what is timed
    started = time.monotonic()
    rows = run(planner, videos(hang, demo_videos / "no_face.mp4"))
    assert [row["reason"] for row in rows] == ["timeout", None]
    assert time.monotonic() - started < 15


def test_a_missing_video_is_a_row_without_a_child(planner, tmp_path) -> None:
    (row,) = run(planner, videos(tmp_path / "none.mp4", missing="not_found"))
    assert (row["reason"], row["failed"], row["n_segments"]) == ("not_found", True, 1)
    assert planner.decoder.pid is None


def test_a_long_video_becomes_segments(demo_videos) -> None:
    short = FaceSettings(
        DecodeConfig(segment_seconds=2.5),
        FacesConfig(),
        WindowsConfig(),
        LimitsConfig(),
        SMALL_CROPS,
    )
    rows = run(SegmentPlanner(short), videos(demo_videos / "portrait.mp4"))
    assert [(r["segment"], r["n_segments"], r["start_s"]) for r in rows] == [
        (0, 3, 0.0), (1, 3, 2.5), (2, 3, 5.0)
    ]  # fmt: skip
    wanted = videos(demo_videos / "portrait.mp4", segments=[1])
    assert [r["segment"] for r in run(SegmentPlanner(short), wanted)] == [1]


def test_one_that_was_opened_before_fails_in_what_was_to_be_done_and_no_more(
    tmp_path: Path,
) -> None:
    gone = videos(tmp_path / "gone.mp4", segments=[4], n_segments=5, attempt=2)
    (row,) = run(SegmentPlanner(settings(segment_timeout_seconds=20)), gone)
    assert (row["segment"], row["n_segments"], row["attempt"]) == (4, 5, 2)
    assert (row["failed"], row["reason"]) == (True, "not_found")


def test_a_header_that_promises_a_century_is_not_believed() -> None:
    video = dict.fromkeys(VIDEO_ROW.names) | {"size": 100_000, "segments": None}
    century = VideoInfo(3e9, 25.0, 64, 48, "h264")
    (row,) = segment_rows(video, century, DecodeConfig())
    assert row["n_segments"] == 1
    hour = VideoInfo(3600.0, 25.0, 64, 48, "h264")
    assert len(segment_rows(video, hour, DecodeConfig())) == 12
    untold = video | {"size": 0}  # by a server that does not tell lengths
    assert len(segment_rows(untold, hour, DecodeConfig())) == 12


def test_more_crops_than_memory_holds_are_a_reason_and_no_crash(
    demo_videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = SegmentPlanner(settings())
    segments = planner(videos(demo_videos / "portrait.mp4"))
    (segment,) = segments.to_pylist()
    worker = face_child._Worker(json.loads(settings().message(finds_faces=True)))
    real, sizes = face_child._as_arrow, []

    def holds_little(row: dict[str, Any]) -> bytes:
        sizes.append(len(row["windows"]))
        if row["windows"]:
            raise pa.ArrowMemoryError("malloc of 2147483648 bytes failed")
        return real(row)

    monkeypatch.setattr(face_child, "_as_arrow", holds_little)
    answer = worker.answer({"faces": _as_json(segment)})
    (row,) = pa.ipc.open_stream(answer).read_all().to_pylist()
    assert sizes[0] > 0
    assert (row["failed"], row["reason"]) == (True, "out_of_memory")
    assert row["detail"].endswith("lower decode.segment_seconds")
    assert row["face_seconds"] > 0


def test_a_child_that_dies_tells_how_and_the_next_request_has_a_new_one() -> None:
    child = Child(POISON)
    hello = settings().message(finds_faces=False)
    child.ask(hello, 60)
    first = child.pid
    with pytest.raises(ChildDied, match="SIGSEGV"):
        child.ask(b'{"probe": "segv", "cpu_seconds": 60}', 20)
    assert child.pid is None
    child.ask(hello, 60)
    assert child.pid not in (None, first)
    with pytest.raises(ChildTimedOut):
        child.ask(b'{"probe": "hang", "cpu_seconds": 60}', 0.5)
    assert child.pid is None


def test_whoever_is_interrupted_leaves_no_answer_to_the_next_who_asks() -> None:
    child = Child(POISON)
    child.ask(settings().message(finds_faces=False), 60)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            child.ask(b'{"probe": "hang", "cpu_seconds": 60}', 20)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert child.pid is None


def test_the_child_ends_with_its_parent() -> None:
    child = Child(POISON)
    child.ask(settings().message(finds_faces=False), 60)
    pid = child.pid
    assert pid is not None
    child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def in_a_process(code: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)


@pytest.mark.parametrize("power", ["all", "of an ordinary user"])
def test_a_child_that_reads_local_files_has_no_network(power: str) -> None:
    weak = ["setpriv", "--bounding-set=-sys_admin"]
    powers = weak if power != "all" and os.geteuid() == 0 else []
    run = {"cwd": ROOT, "capture_output": True, "check": False, "timeout": 60}
    if subprocess.run([*powers, "unshare", "--map-root-user", "--net", "true"], **run).returncode:
        pytest.skip("this platform lets nobody leave the network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = ["tests.actors.reach", str(server.getsockname()[1])]
        python = [*powers, sys.executable, "-m"]
        assert subprocess.run([*python, *reach], **run).returncode == 0
        left = subprocess.run([*python, "emolake.actors.apart", *reach], **run)
    assert b"Network is unreachable" in left.stderr


def test_the_face_stages_children_are_apart_where_no_video_is_remote(demo_videos) -> None:
    own = Path("/proc/self/ns/net").readlink()
    for network in (False, True):
        planner = SegmentPlanner(replace(settings(), network=network))
        planner(videos(demo_videos / "portrait.mp4"))
        theirs = Path(f"/proc/{planner.decoder.pid}/ns/net").readlink()
        assert (theirs == own) is network


def test_a_child_has_only_so_much_processor_time() -> None:
    spin = "from emolake.actors.face_child import limit_cpu as limit; limit(1)\nwhile True: pass"
    assert in_a_process(spin).returncode == -signal.SIGXCPU


def test_a_child_that_cannot_start_fails_the_job_and_not_the_videos(
    monkeypatch, demo_videos
) -> None:
    segments = SegmentPlanner(settings())(videos(demo_videos / "portrait.mp4"))
    monkeypatch.setattr(face_actor, "_CHILD", "emolake.actors.no_such_module")
    with pytest.raises(ChildDied):
        SegmentPlanner(settings())(videos(demo_videos / "portrait.mp4"))
    actor = FaceActor(settings())
    with pytest.raises(ChildDied):
        actor(segments)


def test_a_face_actor_that_plans_gives_what_planner_and_actor_give(demo_videos, tmp_path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    given = videos(demo_videos / "portrait.mp4", tmp_path / "text.mp4", demo_videos / "no_face.mp4")
    short = replace(settings(), decode=DecodeConfig(segment_seconds=3))
    apart, alone = FaceActor(short), FaceActor(short, plans=True)
    ours, theirs = run(alone, given), run(apart, SegmentPlanner(short)(given))
    assert [row["reason"] for row in ours] == [None, None, "not_a_video", None, None]
    for rows in (ours, theirs):
        for row in rows:
            del row["face_seconds"], row["bytes_read"]  # what is read ahead of a header varies
    assert ours == theirs
    assert run(alone, given.slice(0, 0)) == []


def test_an_actors_child_loads_before_there_is_anything_to_ask(demo_videos) -> None:
    actor = FaceActor(settings())
    pid = actor.decoder.pid
    assert pid is not None
    segments = SegmentPlanner(settings())(videos(demo_videos / "portrait.mp4"))
    assert run(actor, segments)[0]["tracks"]
    assert actor.decoder.pid == pid
    os.kill(pid, signal.SIGKILL)
    other = FaceActor(settings())
    assert other.decoder.pid is not None
    os.kill(other.decoder.pid, signal.SIGKILL)  # while it loads
    assert run(other, segments)[0]["tracks"], "it is started once more"


def test_a_child_has_no_files_of_its_parent(tmp_path) -> None:
    child = Child("emolake.actors.face_child")
    with (tmp_path / "private").open("w") as private:
        os.set_inheritable(private.fileno(), True)
        child.ask(settings().message(finds_faces=False), 60)
        opened = [str(f.readlink()) for f in Path(f"/proc/{child.pid}/fd").iterdir() if f.exists()]
    child.stop()
    assert opened
    assert not any("private" in path for path in opened)


def test_a_detector_that_cannot_be_loaded_fails_the_job_with_its_reason(demo_videos) -> None:
    lost = replace(settings(), faces=FacesConfig(detector="retinaface", weights="/none/here.pth"))
    segments = SegmentPlanner(lost)(videos(demo_videos / "portrait.mp4"))
    with pytest.raises(JobFailed, match=r"cannot start: faces.weights: /none/here.pth does not"):
        FaceActor(lost)(segments)


def test_a_broken_device_is_the_jobs_matter_and_no_videos(
    poisoned: None, demo_videos: Path, tmp_path: Path
) -> None:
    names = ("full-device.mp4", "broken-device.mp4")
    paths = [Path(shutil.copy(demo_videos / "portrait.mp4", tmp_path / name)) for name in names]
    full, broken = (SegmentPlanner(settings())(videos(path)) for path in paths)
    on_device = FaceActor(replace(settings(), device="cuda"))
    (row,) = run(on_device, full)
    assert (row["failed"], row["reason"]) == (True, "out_of_memory")
    with pytest.raises(
        DeviceFailed,
        match=r"the device of \S+ failed: CUDA error: an illegal.*broken-device.mp4 segment 0",
    ):
        on_device(broken)
    (good,) = run(on_device, SegmentPlanner(settings())(videos(demo_videos / "portrait.mp4")))
    assert not good["failed"], "the child that broke is another's matter"
    (row,) = run(FaceActor(settings()), broken)
    assert (row["failed"], row["reason"]) == (True, "decode_error")


def test_a_presigned_videos_own_subtitles_are_read_though_no_sidecar_can_be_asked_for(
    tmp_path: Path,
) -> None:
    subtitled(tmp_path / "talk.mkv")

    class WantsASignature(SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            if "X-Amz-Signature=f00" not in self.path:
                self.send_error(403)
                return None
            return super().send_head()

        def log_message(self, *_: object) -> None:
            pass

    serve = partial(WantsASignature, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/talk.mkv"
        opened = {"signed_uri": f"{uri}?X-Amz-Signature=f00", "transcript_uri": None}
        wanted = replace(settings(), needs=Needs(transcript=True), network=True)
        row = videos(tmp_path / "talk.mkv", uri=uri, **opened)
        (segment,) = run(FaceActor(wanted), SegmentPlanner(wanted)(row))
        server.shutdown()
    assert (segment["reason"], segment["detail"]) == (None, None)
    assert [cue["text"] for cue in segment["cues"]] == [cue.text for cue in CUES]
