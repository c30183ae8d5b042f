"""The report in a real browser: headless Chromium, driven by Selenium."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from emolake.jobs.cli import main
from emolake.pipeline.lake.commit import commit_segments
from tests.pipeline.lake.test_lake import RUN, lake_at, no_fence, segment

VIDEOS = 120


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    lake = lake_at(folder / "out")
    rows = [segment(f"v{k:03d}", windows=1 + k % 3) for k in range(VIDEOS - 1)]
    rows.append(segment("broken", windows=0, failed=True, reason="timeout", detail="too slow"))
    commit_segments(lake, rows, RUN, no_fence)
    html = folder / "report.html"
    assert main(["report", str(folder / "out"), "--html", str(html)]) == 0
    return html


@pytest.fixture(scope="module")
def served(large_page: Path) -> Iterator[str]:
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = partial(quiet, directory=str(large_page.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{large_page.name}"
    server.shutdown()


def shown(browser: Chrome) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#videos tbody tr:not([hidden]) td:first-child")
    return [row.text for row in rows]


def test_the_page_draws_searches_sorts_and_pages(browser: Chrome, served: str) -> None:
    browser.get(served)
    assert len(shown(browser)) == 50
    assert browser.find_element(By.ID, "page").text == f"page 1 of 3, {VIDEOS} videos"
    assert len(browser.find_elements(By.CSS_SELECTOR, "article:not([hidden]) svg")) == 50
    bar = browser.find_element(By.CSS_SELECTOR, "article:not([hidden]) rect.bar")
    assert bar.size["width"] > 50
    told = bar.find_element(By.TAG_NAME, "title").get_attribute("textContent")
    assert told.startswith("0:00.0 - 0:02.0  fear 0.75")
    browser.find_element(By.ID, "next").click()
    assert "page 2 of 3" in browser.find_element(By.ID, "page").text
    assert shown(browser)[0] == "v050.mp4"
    search = browser.find_element(By.ID, "search")
    search.send_keys("broken")
    assert shown(browser) == ["broken.mp4"]
    assert not browser.find_element(By.CSS_SELECTOR, ".pages").is_displayed()
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(Keys.DELETE)
    state = browser.find_element(By.XPATH, "//button[.='state']")
    state.send_keys(Keys.ENTER)  # by keyboard
    state.send_keys(Keys.ENTER)
    assert shown(browser)[0] == "broken.mp4"
    heads = browser.find_elements(By.CSS_SELECTOR, "#videos th[aria-sort=descending]")
    assert [head.text for head in heads] == ["state"]


def test_a_click_on_a_window_lights_up_its_row(browser: Chrome, served: str) -> None:
    browser.get(served)
    bar = browser.find_element(By.CSS_SELECTOR, "article:not([hidden]) rect.bar")
    browser.execute_script("arguments[0].scrollIntoView()", bar)
    ActionChains(browser).move_to_element(bar).click().perform()
    (lit,) = browser.find_elements(By.CSS_SELECTOR, "tr.lit")
    assert lit.get_attribute("id") == bar.get_attribute("data-row")
    assert lit.is_displayed()


def test_nothing_is_asked_of_the_network_and_nothing_complains(
    browser: Chrome, served: str
) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(served)
    assert browser.get_log("browser") == []
    asked = [
        entry["message"].split('"url":"')[1].split('"')[0]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert {url for url in asked if not url.startswith("data:")} == {served}


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_of_a_real_run_looks_right_in_both_themes_and_on_a_phone(
    browser: Chrome, demo_output: Path, tmp_path: Path, width: int, theme: str
) -> None:
    html = tmp_path / "report.html"
    assert main(["report", str(demo_output), "--html", str(html)]) == 0
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": theme}]},
    )
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(html.as_uri())
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, "nothing is wider than the screen"
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 250, 247)", "dark": "rgb(22, 24, 28)"}[theme]
    assert browser.find_elements(By.CSS_SELECTOR, "rect.bar")
    folder = Path(os.environ.get("SCREENSHOTS", str(tmp_path)))
    picture = folder / f"report-{theme}-{width}.png"
    assert browser.save_screenshot(str(picture))
    assert picture.stat().st_size > 10_000


def test_without_javascript_the_tables_are_all_there(browser: Chrome, large_page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(large_page.as_uri())
        assert len(browser.find_elements(By.CSS_SELECTOR, "#videos tbody tr")) == VIDEOS
        assert len(shown(browser)) == VIDEOS
        assert not browser.find_element(By.CSS_SELECTOR, ".pages").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_thousand_videos_stay_under_five_megabytes(tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "out")
    rows = [segment(f"video-with-a-longer-name-{k:04d}", windows=8) for k in range(1000)]
    commit_segments(lake, rows, RUN, no_fence)
    html = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "out"), "--html", str(html)]) == 0
    assert html.stat().st_size < 5_000_000
