"""The view in a real browser: play, seek, correct, reload and find it saved."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.labels import Labels, save
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.storage.files import Storage
from tests.jobs.view.archive import FACE, WIDTH, Served, left_at, served, small_archive, video
from tests.pipeline.lake.test_labels import said
from tests.pipeline.lake.test_lake import RUN, no_fence


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return small_archive(tmp_path_factory.mktemp("view"))


@pytest.fixture
def shown(lake: Lake, tmp_path: Path, browser: Chrome) -> Iterator[Served]:
    shutil.copytree(lake.root, tmp_path / "out")
    with served(Lake.at(str(tmp_path / "out"), Storage())) as found:
        browser.set_window_size(1300, 950)
        browser.get(f"{found.address}/?token={found.viewer.token}")
        browser.get_log("browser")
        yield found
        wrong = [
            entry
            for entry in browser.get_log("browser")
            if entry["level"] == "SEVERE" and "404" not in entry["message"]
        ]
        assert wrong == []


def until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)


def at(chrome: Chrome, name: str) -> WebElement:
    return chrome.find_element(By.ID, name)


def film_time(chrome: Chrome) -> float:
    return float(chrome.execute_script("return document.getElementById('film').currentTime"))


def opened(chrome: Chrome, shown: Served, path: str) -> None:
    chrome.get(shown.address + path)
    until(lambda: chrome.execute_script("return document.getElementById('film').readyState") >= 2)


def press(chrome: Chrome, *keys: str) -> None:
    ActionChains(chrome).send_keys(*keys).perform()


def test_the_token_leaves_the_address(browser: Chrome, shown: Served) -> None:
    until(lambda: "token" not in browser.current_url)
    browser.refresh()
    assert "18 moments" in browser.page_source, "the cookie speaks"


def test_from_a_facet_to_a_moment_of_the_video(browser: Chrome, shown: Served) -> None:
    browser.find_element(By.CSS_SELECTOR, "aside a[href*=sadness]").click()
    assert "5 moments" in browser.page_source
    address = browser.current_url
    first = browser.find_element(By.CSS_SELECTOR, ".moments a[href*=walk]")
    still = first.find_element(By.TAG_NAME, "img")
    until(lambda: still.get_property("naturalWidth"))
    first.click()
    until(lambda: "sadness" in at(browser, "now").text)
    until(lambda: abs(film_time(browser) - 5) < 0.15)
    browser.get(address)
    assert "5 moments" in browser.page_source, "an address can be sent to a colleague"


def test_the_picture_its_boxes_and_its_lanes_have_one_clock(
    browser: Chrome,
    shown: Served,
) -> None:
    opened(browser, shown, "/video/walk")
    assert "happiness" in at(browser, "now").text
    lanes = browser.find_elements(By.CSS_SELECTOR, ".lane canvas")
    assert len(lanes) == 2
    ActionChains(browser).move_to_element_with_offset(
        lanes[0], lanes[0].size["width"] // 4, 0
    ).click().perform()
    until(lambda: abs(film_time(browser) - 4.5) < 0.1)
    until(lambda: "sadness" in at(browser, "now").text)
    until(lambda: boxed(browser)[0] > 0)
    left, right = boxed(browser)
    assert left == pytest.approx(left_at(4.5) / WIDTH, abs=0.02)
    assert right == pytest.approx((left_at(4.5) + FACE) / WIDTH, abs=0.02)
    press(browser, " ")
    until(lambda: film_time(browser) > 4.9)
    until(lambda: boxed(browser)[0] > left, 10)


def boxed(chrome: Chrome) -> tuple[float, float]:
    """Left and right edge of what is drawn over the picture, in parts of it; 0, 0 where nothing is."""
    return tuple(
        chrome.execute_script(
            """
            const boxes = document.getElementById('boxes'), film = document.getElementById('film');
            const pen = boxes.getContext('2d'), on = [];
            const row = pen.getImageData(0, Math.round(boxes.height * 0.5), boxes.width, 1).data;
            for (let x = 0; x < boxes.width; x++) if (row[4 * x + 3] > 128) on.push(x);
            const scale = Math.min(boxes.width / film.videoWidth, boxes.height / film.videoHeight);
            const width = film.videoWidth * scale, from = (boxes.width - width) / 2;
            return on.length ? [(on[0] - from) / width, (on.at(-1) - from) / width] : [0, 0];
            """
        )
    )


def test_keys_step_by_window_track_and_emotion(browser: Chrome, shown: Served) -> None:
    opened(browser, shown, "/video/walk")
    press(browser, Keys.ARROW_RIGHT)
    until(lambda: "neutral" in at(browser, "now").text)
    press(browser, Keys.ARROW_RIGHT)
    until(lambda: "sadness" in at(browser, "now").text)
    press(browser, Keys.ARROW_LEFT)
    until(lambda: "neutral" in at(browser, "now").text)
    press(browser, "]")
    until(lambda: "sadness" in at(browser, "now").text)
    press(browser, Keys.ARROW_DOWN)
    until(lambda: "n" in at(browser, "face").text.split(", ")[-1])
    assert "neutral" in at(browser, "now").text


def test_corrected_reloaded_and_found_saved_and_taken_back(
    browser: Chrome,
    shown: Served,
) -> None:
    lake = shown.viewer.index.lake
    opened(browser, shown, "/video/walk?at=3")
    press(browser, "1")
    until(lambda: at(browser, "saved").text == "saved: anger")
    (row,) = Labels.of(lake).standing()
    assert (row["label"], row["window"], row["queue"], row["blind"]) == ("anger", 1, None, False)
    press(browser, "n")
    press(browser, "a shadow 1", Keys.ENTER)
    until(lambda: "a shadow 1" in at(browser, "people").text)
    browser.refresh()
    until(lambda: "ann: anger" in at(browser, "people").text)
    chosen = browser.find_element(By.CSS_SELECTOR, "#answers [aria-pressed=true]")
    assert chosen.get_attribute("data-label") == "anger"
    press(browser, "6")
    until(lambda: at(browser, "saved").text == "saved: sadness")
    press(browser, "z")
    until(lambda: at(browser, "saved").text == "back to: anger")
    assert sorted(r["label"] for r in Labels.of(lake).standing()) == ["a shadow 1", "anger"]


def test_what_is_taken_back_in_haste_is_what_was_said_last(browser: Chrome, shown: Served) -> None:
    opened(browser, shown, "/video/walk?at=1")
    press(browser, "1")
    until(lambda: at(browser, "saved").text == "saved: anger")
    press(browser, Keys.ARROW_RIGHT)
    until(lambda: "neutral" in at(browser, "now").text)
    press(browser, "4", "z")
    until(lambda: at(browser, "saved").text == "taken back")
    (row,) = Labels.of(shown.viewer.index.lake).standing()
    assert (row["window"], row["label"]) == (0, "anger")


def test_a_second_face_is_the_same_person(browser: Chrome, shown: Served) -> None:
    row = video("/v/two.mp4", "two")
    row["annotations"] += [a | {"track_id": 1} for a in row["annotations"]]
    row["tracks"].append(row["tracks"][0] | {"track_id": 1})
    lake = shown.viewer.index.lake
    commit_segments(lake, [row], RUN, no_fence)
    shown.viewer._read_anew()
    browser.get(f"{shown.address}/video/two?at=3")
    until(lambda: "neutral" in at(browser, "now").text)
    press(browser, "p", Keys.ARROW_DOWN)
    press(browser, Keys.ENTER)
    until(lambda: "saved" in at(browser, "saved").text)
    (said,) = Labels.of(lake).standing()
    assert (said["kind"], said["track_id"], said["window"], said["label"]) == (
        "same person", 0, 1, "0.1",
    )  # fmt: skip
    answer = shown.say("two", 0, "0.9", kind="same person")
    assert (answer.status_code, answer.text) == (400, "the video has no other face 0.9")


def test_a_note_is_kept_in_its_field_until_it_is_stored(
    browser: Chrome, shown: Served, monkeypatch
) -> None:
    opened(browser, shown, "/video/avi?at=1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "create_table", full)
        press(browser, "n")
        press(browser, "a shadow", Keys.ENTER)
        until(lambda: "not saved" in at(browser, "saved").text)
    field = browser.find_element(By.NAME, "text")
    assert field.get_property("value") == "a shadow"
    field.send_keys(Keys.ENTER)
    until(lambda: at(browser, "saved").text == "saved: note")
    assert field.get_property("value") == ""
    browser.get_log("browser")  # the 502 is among them


def test_a_store_that_refuses_is_told_and_asked_again_by_the_next_key(
    browser: Chrome,
    shown: Served,
    monkeypatch,
) -> None:
    opened(browser, shown, "/video/avi?at=1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "create_table", full)
        press(browser, "1")
        until(lambda: "not saved" in at(browser, "saved").text)
    press(browser, "1")
    until(lambda: at(browser, "saved").text == "saved: anger")
    browser.get_log("browser")  # the 502 is among them


def test_what_the_browser_cannot_play_is_shown_remade(browser: Chrome, shown: Served) -> None:
    opened(browser, shown, "/video/avi?at=3")
    assert "Remade around the moment: mpeg4 in avi" in at(browser, "notice").text
    until(lambda: abs(film_time(browser) - 3) < 0.2)
    until(lambda: boxed(browser)[0] > 0)
    assert boxed(browser)[0] == pytest.approx(left_at(3) / WIDTH, abs=0.02)


@pytest.mark.parametrize(("name", "why"), [("gone", "not_found"), ("cut", "truncated")])
def test_a_video_that_is_gone_says_why_and_its_lanes_stay(
    browser: Chrome,
    shown: Served,
    name: str,
    why: str,
) -> None:
    browser.get(f"{shown.address}/video/{name}?at=1")
    until(lambda: why in at(browser, "notice").text)
    assert "happiness" in at(browser, "now").text


def test_the_review_asks_blind_goes_on_and_ends(browser: Chrome, shown: Served) -> None:
    opened(browser, shown, "/review?queue=disagree&blind=1")
    asked = []
    for key in "56":
        until(lambda: "done" in at(browser, "progress").text)
        until(lambda: at(browser, "answers").find_element(By.TAG_NAME, "button").is_enabled())
        for secret in ("happiness,", "sadness,", "%"):
            assert secret not in at(browser, "now").text + at(browser, "scores").text
        asked.append(at(browser, "now").text)
        press(browser, key)
        told = f"{len(asked)} of 2 done"
        until(lambda told=told: told in at(browser, "progress").text)
    assert len(set(asked)) == 2
    until(lambda: at(browser, "face").text == "Done")
    rows = Labels.of(shown.viewer.index.lake).standing()
    assert {row["label"] for row in rows} == {"neutral", "sadness"}
    assert all(row["blind"] and row["queue"] == "disagree, seed 0" for row in rows)


def test_what_a_blind_page_does_not_show_is_there_again_when_taken_back(
    browser: Chrome, shown: Served
) -> None:
    asked = shown.get("/api/next?queue=disagree&blind=1").json()["item"]
    aside = Keys.ARROW_LEFT if asked["window"] == 2 else Keys.ARROW_RIGHT
    assert shown.say(asked["video_id"], 1, "happiness").ok
    lake = shown.viewer.index.lake
    old = said(
        asked["video_id"], asked["window"], uri=asked["uri"], reviewer=shown.viewer.index.reviewer
    )
    save(lake, old | {"start_s": 99.0, "end_s": 100.0, "label": "disgust"}, "c", RUN.date)
    shown.post("/api/read", {})
    opened(browser, shown, "/review?queue=disagree&blind=1")
    for keys, before in (((aside, "3"), "happiness"), ("3", None)):
        until(lambda: at(browser, "answers").find_element(By.TAG_NAME, "button").is_enabled())
        for key in keys:
            time.sleep(0.5)
            press(browser, key)
        until(lambda: "saved: fear" in at(browser, "saved").text)
        press(browser, "z")
        told = f"back to: {before}" if before else "taken back"
        until(lambda told=told: told in at(browser, "saved").text)
    rows = Labels.of(lake).standing()
    assert [(row["start_s"], row["label"]) for row in rows if row["start_s"] < 99] == [
        (2.0, "happiness")
    ]


def test_the_report_leads_to_its_moments(browser: Chrome, shown: Served) -> None:
    browser.get(f"{shown.address}/report")
    bars = browser.find_elements(By.CSS_SELECTOR, "svg a[href*=walk]")
    ActionChains(browser).move_to_element(bars[1]).click().perform()
    until(lambda: "/video/walk" in browser.current_url)
    until(lambda: "neutral" in at(browser, "now").text)


def test_one_press_labels_one_window_that_was_seen(browser: Chrome, shown: Served) -> None:
    opened(browser, shown, "/review?queue=disagree")
    until(lambda: at(browser, "answers").find_element(By.TAG_NAME, "button").is_enabled())
    until(lambda: browser.execute_script("return document.getElementById('film').readyState") >= 2)
    held = "document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: arguments[0]}))"
    browser.execute_script(
        f"{held}; for (let k = 0; k < 30; k++) {held.replace('arguments[0]', 'true')}", False
    )
    browser.execute_script(held, False)  # before what comes next is there
    until(lambda: "1 of 2 done" in at(browser, "progress").text)
    time.sleep(1)
    rows = list(Labels.of(shown.viewer.index.lake).rows.values())
    assert [row["revision"] for row in rows] == [1]


def test_who_looks_around_is_still_asked_and_still_blind(browser: Chrome, shown: Served) -> None:
    opened(browser, shown, "/review?queue=disagree&blind=1")
    until(lambda: at(browser, "answers").find_element(By.TAG_NAME, "button").is_enabled())
    press(browser, Keys.ARROW_RIGHT)
    press(browser, Keys.ARROW_LEFT)
    press(browser, "q")
    time.sleep(0.5)
    press(browser, "1")
    until(lambda: at(browser, "progress").text == "1 of 2 done")
    (row,) = Labels.of(shown.viewer.index.lake).standing()
    assert (row["blind"], row["queue"]) == (True, "disagree, seed 0")


def test_an_answer_is_stored_though_the_one_before_led_nowhere(
    browser: Chrome, shown: Served, monkeypatch
) -> None:
    opened(browser, shown, "/review?queue=disagree")
    until(lambda: at(browser, "answers").find_element(By.TAG_NAME, "button").is_enabled())
    press(browser, "1")
    until(lambda: "1 of 2 done" in at(browser, "progress").text)

    def away(*_: object) -> None:
        raise OSError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(shown.viewer.index, "next_in", away)
        press(browser, "z")
        until(lambda: "what comes next is not known" in at(browser, "notice").text)
    press(browser, "6")
    until(lambda: at(browser, "saved").text == "saved: sadness")
    (row,) = Labels.of(shown.viewer.index.lake).standing()
    assert row["label"] == "sadness"
    browser.get_log("browser")  # the 502 is among them


def test_a_question_of_a_film_that_is_gone_shows_no_other_film(
    browser: Chrome, shown: Served
) -> None:
    for name in ("avi", "fields", "cut", "walk", "gone"):
        for window in range(3):
            if (name, window) not in (("walk", 2), ("gone", 0)):
                assert shown.say(name, window, "anger").ok
    opened(browser, shown, "/review?queue=uncertain")
    press(browser, "1")
    until(lambda: "gone" in browser.title)
    until(lambda: "not_found" in at(browser, "notice").text)
    script = "const f = document.getElementById('film'); return [f.paused, f.getAttribute('src')]"
    assert browser.execute_script(script) == [True, None]
    press(browser, "2")
    until(lambda: "15 of 15 done" in at(browser, "progress").text)


@pytest.mark.parametrize("path", ["/", "/video/walk?at=1", "/review"])
def test_it_fits_a_phone_and_can_be_read_by_name(
    browser: Chrome,
    shown: Served,
    path: str,
) -> None:
    browser.set_window_size(500, 900)
    browser.get(shown.address + path)
    until(lambda: browser.execute_script("return document.readyState") == "complete")
    wide = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide[0] <= wide[1], "nothing sticks out"
    for control in browser.find_elements(By.CSS_SELECTOR, "button, a[href], input, select"):
        if control.is_displayed():
            assert control.accessible_name.strip(), control.get_attribute("outerHTML")
