"""Damaged files by the hundred, and a fuzzer against the decoder."""

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from emolake.actors.face_actor import FaceActor, FaceSettings, SegmentPlanner
from emolake.pipeline.config import DecodeConfig, FacesConfig, LimitsConfig, WindowsConfig
from emolake.pipeline.errors import Reason
from tests.actors.test_face_actor import run, videos
from tests.chaos.conftest import Amount
from tests.chaos.harness import Runs, keyed
from tests.chaos.mutator import damaged_corpus
from tests.conftest import SMALL_CROPS, read_rows
from tests.pipeline.video.test_odd_videos import film, portrait

STATES = {"annotated", "no_face", "failed"}


@pytest.fixture(scope="session")
def small_clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four containers and codecs, some tens of kilobytes each."""
    folder = tmp_path_factory.mktemp("small")
    few = [portrait(320, 260)] * 30
    return [
        film(folder / "h264.mp4", few, bf="2"),
        film(folder / "hevc.mov", few, codec="libx265"),
        film(folder / "mpeg4.avi", few, codec="mpeg4"),
        film(folder / "h264.ts", few, g="5"),
    ]


def test_every_damaged_file_is_accounted_for(
    small_clips: list[Path], tmp_path: Path, amount: Amount
) -> None:
    paths = damaged_corpus(small_clips, tmp_path / "corpus", amount.of(45, 320), seed=7)
    runs = Runs(tmp_path / "corpus", tmp_path / "output", ("--set", "resources.face_actors=2"))
    runs.finish(timeout=900)
    rows = read_rows(runs.output, "videos")
    states = {Path(r["uri"]).name: set() for r in rows}
    for row in rows:
        states[Path(row["uri"]).name].add(row["state"])
        assert row["state"] in STATES
        assert row["state"] != "failed" or row["reason"] in get_args(Reason)
    assert states.keys() == {path.name for path in paths}
    assert len(keyed(runs.output)) > 0
    print("files:", len(paths), Counter(r["reason"] or r["state"] for r in rows))


@pytest.fixture(scope="module")
def stage() -> tuple[SegmentPlanner, FaceActor]:
    limits = LimitsConfig(segment_timeout_seconds=15, timeout_per_video_second=0)
    given = FaceSettings(DecodeConfig(), FacesConfig(), WindowsConfig(), limits, SMALL_CROPS)
    return SegmentPlanner(given), FaceActor(given)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=5,
)


def edited(data: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    out = bytearray(data)
    for what, where, value in edits:
        at = int(where * len(out))
        if what == "flip":
            out[at] ^= 1 << (value % 8)
        elif what == "set":
            out[at : at + 4] = bytes([value]) * len(out[at : at + 4])
        elif what == "cut":
            del out[at : at + value]
        else:
            out[at:at] = bytes([value]) * 8
        if not out:
            return b""
    return bytes(out)


@pytest.mark.parametrize("kind", range(4))
def test_the_decoder_under_a_fuzzer(
    small_clips: list[Path],
    stage: tuple[SegmentPlanner, FaceActor],
    tmp_path: Path,
    amount: Amount,
    kind: int,
) -> None:
    clip = small_clips[kind]
    whole = clip.read_bytes()
    planner, actor = stage
    found: Counter[str] = Counter()

    @settings(
        max_examples=amount.of(12, 120),
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    @example([("cut", 0.0, 255)])
    def fuzz(edits: list[tuple[str, float, int]]) -> None:
        path = tmp_path / f"fuzzed{clip.suffix}"
        path.write_bytes(edited(whole, edits))
        rows = run(actor, planner(videos(path)))
        assert rows
        for row in rows:
            assert not row["failed"] or row["reason"] in get_args(Reason)
            found[row["reason"] or "read"] += 1
            # Damage costs a reason; a crash or a hang of the decoder would be a find to keep.
            assert row["reason"] not in ("decoder_crashed", "timeout"), edits

    fuzz()
    assert found.total() > 0
    print(clip.name, dict(found))
