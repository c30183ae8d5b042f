"""The demo's corpus."""

from pathlib import Path

from emolake.jobs.demo import make_corpus


def test_a_corpus_made_again_stays_as_it_is(demo_videos: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in demo_videos.iterdir()}
    make_corpus(demo_videos)
    assert {path.name: path.stat().st_mtime_ns for path in demo_videos.iterdir()} == before
