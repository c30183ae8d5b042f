"""Videos that crash, hang or bloat the decoder, in a whole run."""

import shutil
from pathlib import Path

from tests.chaos.harness import Runs, keyed
from tests.conftest import ROOT, read_rows

LIMITS = (
    "--set", "limits.segment_timeout_seconds=20",
    "--set", "limits.timeout_per_video_second=0.1",
    "--set", "resources.face_actors=2",
)  # fmt: skip
REASONS = {"segv": "decoder_crashed", "exit": "decoder_crashed", "hang": "timeout"}
REASONS |= {"memory": "out_of_memory"}


def test_poison_costs_its_own_videos_only(demo_videos: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for k in range(4):
        shutil.copy(demo_videos / "portrait.mp4", corpus / f"good{k}.mp4")
    healthy = Runs(corpus, tmp_path / "healthy", LIMITS)
    healthy.finish()
    for name in REASONS:
        shutil.copy(demo_videos / "portrait.mp4", corpus / f"{name}.mp4")
    path = f"{ROOT / 'tests/chaos/poison'}:{ROOT}"
    poisoned = Runs(corpus, tmp_path / "poisoned", LIMITS, {"PYTHONPATH": path})
    poisoned.finish()
    told = {Path(r["uri"]).stem: r for r in read_rows(poisoned.output, "videos")}
    for name, reason in REASONS.items():
        assert (told[name]["state"], told[name]["reason"]) == ("failed", reason)
    assert all(told[f"good{k}"]["state"] == "annotated" for k in range(4))
    assert keyed(poisoned.output).keys() == keyed(healthy.output).keys()
