import contextlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from emolake.jobs.cli import main
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.presentation.report.content import read_report
from emolake.pipeline.presentation.report.page import stacks
from tests.conftest import read_rows
from tests.pipeline.lake.test_lake import RUN, NoFence, lake_at, no_fence, segment


def made(tmp_path: Path) -> str:
    lake = lake_at(tmp_path / "made")
    hostile = segment("h") | {"uri": "/v/<script>alert(1)</script>.mp4"}
    failed = segment(
        "f", windows=0, failed=True, reason="timeout", detail="no answer <b>in time</b>"
    )
    commit_segments(lake, [segment("a", windows=3), hostile, failed], RUN, no_fence)
    # An attempt that never was committed must not show.
    stray = [segment("a", windows=9)]
    with contextlib.suppress(KeyboardInterrupt):
        commit_segments(lake, stray, RUN, NoFence(error=KeyboardInterrupt()))
    html = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "made"), "--html", str(html)]) == 0
    return html.read_text()


def test_the_page_shows_what_counts_and_asks_nothing_of_the_network(tmp_path) -> None:
    page = made(tmp_path)
    assert len(re.findall(r'<rect class="bar"', page)) == 5
    assert re.search(r"<b>3</b><span>videos", page)
    assert "timeout" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert '<link rel="icon" href="data:,">' in page


def test_emotions_over_time_share_out_the_whole_time(tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "out")
    commit_segments(lake, [segment("a", windows=3), segment("b", windows=1)], RUN, no_fence)
    report = read_report(lake)
    assert report.stretch_s * len(report.over_time) == pytest.approx(6.0)
    by_stretch = [stretch["fear"] for stretch in report.over_time]
    assert sum(by_stretch) == pytest.approx(report.seconds["fear"]) == pytest.approx(8.0)
    third = len(by_stretch) // 3
    assert by_stretch[0] == pytest.approx(2 * by_stretch[-1]), "two faces, then one"
    assert by_stretch[third + 1] == pytest.approx(by_stretch[-1])
    drawn = stacks(report)
    assert max(float(str(bar["height"])) for bar in drawn) == 120


def test_names_and_details_cannot_become_markup(tmp_path) -> None:
    page = made(tmp_path)
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>in time</b>" not in page


def test_an_output_without_runs_is_told_so(tmp_path, capsys) -> None:
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "r.html")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_stored_face_is_shown_and_no_other(clips, emolake, tmp_path) -> None:
    arguments = ("annotate", clips / "single_face.mp4", "--output", tmp_path / "out", "--quiet")
    done = emolake(*arguments, "--set", "faces.store_thumbnails=true")
    assert done.returncode == 0, done.stderr
    (track,) = read_rows(tmp_path / "out", "tracks")
    picture = cv2.imdecode(np.frombuffer(track["thumbnail"], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (64, 64, 3)
    assert cv2.Laplacian(picture, cv2.CV_64F).var() < 30, "blurred unless asked otherwise"
    html = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "out"), "--html", str(html)]) == 0
    assert html.read_text().count('<img src="data:image/jpeg;base64,') == 1
    assert "<img" not in made(tmp_path)
