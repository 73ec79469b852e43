"""The report in a real browser: its videos play, and nothing on the page goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from magic141.evaluation.config import EvaluateConfig, ReportConfig
from magic141.evaluation.reports.report import write_report
from magic141.stage_log import NullLog
from tests.evaluation.artifacts import GENERATE, RecordingLog

if TYPE_CHECKING:  # the benchmarks are scripts: mypy knows them by their bare names
    from browser import BrowserError, Page, find_browser, open_page
else:
    from benchmarks.browser import BrowserError, Page, find_browser, open_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no chromium or google-chrome on PATH"),
]
ROW = "[...document.querySelectorAll('#videos tbody tr:first-child video')]"
PLAY = """(async () => {
    const video = document.querySelectorAll("video")[%d];
    video.muted = true; video.loop = true;
    await video.play();
    const before = video.currentTime;
    await new Promise(done => { video.ontimeupdate = () => { if (video.currentTime !== before) done(); }; });
    return {ready: video.readyState, moved: video.currentTime !== before, width: video.videoWidth, error: video.error};
})()"""


@pytest.fixture(scope="module")
def page(generated: tuple[dict[str, Path], RecordingLog], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    settings = {"seed": 0, "generate": GENERATE.model_dump(), "evaluate": EvaluateConfig().model_dump()}
    write_report(ReportConfig(), settings, {"generate": generated[0]["generate"]}, folder, NullLog())
    with open_page() as page:
        page.open((folder / "report.html").as_uri())
        page.wait_for("document.readyState === 'complete' && document.querySelector('video')")
        yield page


def test_the_videos_of_a_row_play_in_step_until_they_are_all_paused(page: Page) -> None:
    page.evaluate("document.querySelector('#videos').scrollIntoView()")
    times = f"{ROW}.map(video => video.currentTime)"
    in_step = f"Math.max(...{times}) - Math.min(...{times}) < 0.2"  # on a busy machine not in the first round
    page.wait_for(f"{ROW}.every(video => !video.paused && video.currentTime > 0) && {in_step}")
    page.wait_for(f"{ROW}.every(video => video.ended)")
    page.wait_for(f"{ROW}.every(video => !video.paused && !video.ended)")
    page.evaluate("document.querySelector('#playback').click()")
    assert page.evaluate("[...document.querySelectorAll('video')].every(video => video.paused)")


def test_the_bar_stays_above_what_it_leads_to_and_the_page_does_not_scroll_sideways(page: Page) -> None:
    page.evaluate("document.querySelector('nav a[href=\"#videos\"]').click()")
    page.wait_for("window.scrollY > 0")
    bar, heading = (f"document.querySelector('{where}').getBoundingClientRect()" for where in ("nav", "#videos h2"))
    assert page.evaluate(f"{bar}.top === 0 && {bar}.bottom <= {heading}.top")
    assert page.evaluate("document.querySelector('nav').contains(document.querySelector('#playback'))")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.evaluate("window.scrollTo(0, 0)")


def test_videos_play(page: Page) -> None:
    number = page.evaluate("document.querySelectorAll('video').length")
    assert number > 1
    for index in (0, number - 1):
        state = page.evaluate(PLAY % index)
        assert state["moved"]
        assert state["ready"] >= 2
        assert state["width"] > 0
        assert state["error"] is None


def test_all_videos_can_be_decoded_and_nothing_is_reported_wrong(page: Page) -> None:
    page.wait_for("[...document.querySelectorAll('video')].every(video => video.readyState >= 1)")
    assert page.evaluate("[...document.querySelectorAll('video')].filter(video => video.error).length") == 0
    assert page.errors == []


def test_errors_of_a_page_are_seen(page: Page) -> None:
    with pytest.raises(BrowserError, match="nonsense"):
        page.evaluate("nonsense()")
    page.evaluate("console.error('told')")
    page.evaluate("1")
    assert page.errors[-1] == "told"
