"""The page in a real browser, headless: a running scan fills in, a profile opens, a stranger's script does not run."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from host.boards import open_mock
from host.plan import PlannedPoint
from host.scan import scan
from profiles.storage import Profile
from tests.host.served import ALL, GEOMETRY, HALF, HOSTILE, PLAN, damaged_point, hostile_scan, whole_scan

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 120  # of a busy machine: nothing is waited for longer than it takes
SERVE = """
import sys
from pathlib import Path
import uvicorn
from host.cli.serve import _listen
from host.web.app import application
from host.web.folder import Folder
listening = _listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(application(Folder(Path(sys.argv[1]))), log_level="warning")).run(sockets=[listening])
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = tmp_path_factory.mktemp("browsed") / "lab"
    whole_scan(lab / "whole")
    hostile_scan(lab / "<img src=x onerror=document.title='had'>")
    damaged_point(lab / "damaged")
    (lab / "run").mkdir()
    (lab / "run" / "report.html").write_text(f"<h1 id=run>A run</h1>{HOSTILE}")
    return lab


@pytest.fixture(scope="module")
def address(lab: Path) -> Iterator[str]:
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(lab)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield f"http://127.0.0.1:{int(server.stdout.readline())}/"
    server.terminate()
    server.communicate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert CHROMIUM is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *(f"user-data-dir={tmp_path_factory.mktemp('chromium')}", "window-size=1400,1700"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    browser.set_page_load_timeout(PATIENCE_S)
    yield browser
    browser.quit()


def until(browser: webdriver.Chrome, found: Callable[[], object]) -> None:
    WebDriverWait(browser, PATIENCE_S, ignored_exceptions=(Exception,)).until(lambda _: found())


def all_of(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def text_of(browser: webdriver.Chrome, selector: str) -> str:
    """What is shown there; in one look, as the page may be drawn anew at any moment."""
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def drawn_errors(browser: webdriver.Chrome) -> object:
    return browser.execute_script("return document.querySelector('#bank').dataset.errors")


def picture(browser: webdriver.Chrome, name: str) -> None:
    """Keep what the browser shows, where somebody wants to look at it."""
    if folder := os.environ.get("EDEN_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{name}.png")


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_running_scan_fills_in(lab: Path, address: str, browser: webdriver.Chrome) -> None:
    """The scan waits at its points for the page to show them, so that nothing depends on who is faster."""
    at, go_on = threading.Event(), threading.Semaphore(HALF)

    def watch(profile: Profile, planned: PlannedPoint | None) -> None:
        if planned is not None and not go_on.acquire(blocking=False):
            at.set()
            go_on.acquire()

    board = open_mock("C", 5, GEOMETRY)
    scanning = threading.Thread(target=scan, args=(board, PLAN, lab / "running", watch))
    scanning.start()
    at.wait()
    browser.get(address)
    until(browser, lambda: f"{HALF} of {ALL}" in text_of(browser, "#running"))
    assert "mock:C:5" in text_of(browser, "#running")
    assert "next: 1060 mV, 10 ns, written at the point, 0xFF" in text_of(browser, "#running")
    assert len(all_of(browser, "#running td.tested")) == 4
    assert len(all_of(browser, "#running td.now")) == 1
    picture(browser, "list")
    all_of(browser, "#running .card")[0].click()
    until(browser, lambda: len(all_of(browser, "#heat td.tested")) == 4)
    assert len(all_of(browser, "#heat td.planned")) == 6
    picture(browser, "running")
    go_on.release(6)
    until(browser, lambda: len(all_of(browser, "#heat td.tested")) == 7)  # by itself
    go_on.release(ALL)
    scanning.join()
    until(browser, lambda: text_of(browser, ".pill.complete") == "complete")
    assert len(all_of(browser, "#heat td.tested")) == 10
    assert not all_of(browser, "#heat td.planned, #heat td.now")
    assert complaints(browser) == []


def test_a_profile_shows_its_heat_map_and_where_its_errors_lie(
    lab: Path, address: str, browser: webdriver.Chrome
) -> None:
    profile = Profile.open(lab / "whole")
    browser.get(address)
    until(browser, lambda: all_of(browser, "#profiles a"))
    next(link for link in all_of(browser, "#profiles a") if link.text == "whole").click()
    until(browser, lambda: len(all_of(browser, "#heat td.tested")) == 10)
    title = "return [...document.querySelectorAll('#heat td')].find((td) => td.title.startsWith(arguments[0]))"
    point = "1060 mV, 10 ns, written at nominal"
    browser.execute_script(f"{title}.click()", point)
    records = [record for record in profile.points if f"{record.point}" == "1060 mV, 10 ns"]
    nominal = [record for record in records if record.write_condition == "nominal"]
    assert f"{sum(record.errors for record in nominal):,} errors" in browser.execute_script(f"{title}.title", point)
    for bank in (0, 1):
        all_of(browser, ".banks button")[bank].click()
        errors = sum(int(profile.cells(record.index, bank).errors.sum()) for record in nominal)
        assert errors > 0
        until(browser, lambda errors=errors: drawn_errors(browser) == str(errors))
    seen = (
        "const c = document.querySelector('#bank'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return new Set(Array.from({length: d.length / 4}, (_, k) => d.slice(4 * k, 4 * k + 4).join())).size"
    )
    assert browser.execute_script(seen) >= 2
    loaded = "return [...document.querySelectorAll('.pictures img')].every((i) => i.complete && i.naturalWidth > 300)"
    browser.execute_script("document.querySelectorAll('.pictures img').forEach((i) => { i.loading = 'eager'; })")
    until(browser, lambda: browser.execute_script(loaded))
    picture(browser, "profile")
    assert complaints(browser) == []


def test_what_a_stranger_wrote_is_text(lab: Path, address: str, browser: webdriver.Chrome) -> None:
    browser.get(address)
    until(browser, lambda: all_of(browser, "#profiles a"))
    until(browser, lambda: "<script>document.title='had'</script>" in text_of(browser, "#profiles"))
    next(link for link in all_of(browser, "#profiles a") if link.text.startswith("<img")).click()
    until(browser, lambda: len(all_of(browser, "#heat td.tested")) == 4)
    assert text_of(browser, "h1").startswith("<img src=x onerror=")
    assert HOSTILE[:20] in text_of(browser, "main .note")
    browser.find_element(By.CSS_SELECTOR, "header a").click()
    until(browser, lambda: all_of(browser, "#reports a"))
    browser.get(all_of(browser, "#reports a")[0].get_attribute("href") or "")
    assert text_of(browser, "#run") == "A run"
    assert browser.title != "had"
    browser.get(address)
    assert browser.title != "had"
    assert not [each for each in complaints(browser) if "/reports/" not in each]


def test_a_damaged_profile_says_so(address: str, browser: webdriver.Chrome) -> None:
    browser.get(address)
    until(browser, lambda: all_of(browser, "#profiles a"))
    next(link for link in all_of(browser, "#profiles a") if link.text == "damaged").click()
    until(browser, lambda: "00003.parquet" in text_of(browser, "#damage"))
    assert complaints(browser) == []
