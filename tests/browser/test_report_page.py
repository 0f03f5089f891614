"""The report in headless Chromium: it draws, asks for nothing, works by pointer, keyboard and on paper."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from quicferry.analysis.derive import derive
from quicferry.analysis.page.write import write_page
from quicferry.analysis.tidy import Row
from tests.browser.devtools import Browser
from tests.capture_support import moving_scene, write_run

Story = Callable[[Browser], Awaitable[None]]
PLOTS = "[...document.querySelectorAll('.js-plotly-plot')]"
FIRST_TIMELINE = "document.querySelector('.timeline .js-plotly-plot')"
RANGE = f"{FIRST_TIMELINE}.layout.xaxis.range"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    rows = []
    for number in range(14):
        downtime_ms = 20.0 + 3 * number
        run_dir = write_run(
            folder / f"run-{number}", moving_scene(downtime_ms=downtime_ms), downtime_ms=downtime_ms
        )
        result = derive(run_dir, draw=False)
        result.engine = "criu-cold" if number % 2 else "handoff"
        rows.append(Row("nightly", number, 1, result))
    rows[3].result.outcome, rows[3].result.error = "failed", "the <server> did not come back"
    write_page(rows, folder / "report.html", diagram=lambda _: "<svg viewBox='0 0 9 9'></svg>")
    return (folder / "report.html").as_uri()


@pytest.fixture
def play(tmp_path: Path, page: str) -> Callable[[Story], None]:
    """Plays a story in a browser that shows the page; at its end nothing may have gone wrong in it."""

    async def in_browser(story: Story) -> None:
        browser = await Browser.start(tmp_path / "profile")
        try:
            await browser.size(1280, 900)
            await browser.open(page)
            await browser.wait_for(f"{PLOTS}.length > 0 && {PLOTS}.every(plot => plot._fullLayout)")
            await story(browser)
            assert browser.errors == []
            assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        finally:
            await browser.close()

    return lambda story: asyncio.run(in_browser(story))


def test_every_figure_is_drawn_and_the_page_is_whole(play: Callable[[Story], None]) -> None:
    async def story(browser: Browser) -> None:
        ids = await browser.evaluate(f"{PLOTS}.map(plot => plot.id)")
        assert ids == [
            *("figure-service-migration-time", "figure-container-downtime", "figure-connection-overhead"),
            *("figure-request-hit", "figure-first-request-after", "figure-phases", "figure-distribution"),
            *(f"timeline-{number}" for number in range(1, 15)),
        ]
        marks = await browser.evaluate(f"{PLOTS}.map(plot => plot.querySelectorAll('.trace path').length)")
        assert all(count > 0 for count in marks)
        boxes = await browser.evaluate(
            "[...document.querySelectorAll('.ytick text')].map(t => [t.getBoundingClientRect().left,"
            " t.closest('.figure').getBoundingClientRect().left])"
        )
        assert boxes
        assert all(label >= box for label, box in boxes), "a label is cut"
        broken = await browser.evaluate(
            "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
        )
        assert broken == 0
        text = await browser.evaluate("document.body.innerText")
        assert "the <server> did not come back" in text
        assert "14 runs of 2 combinations; 13 succeeded" in text
        assert await browser.evaluate("document.querySelectorAll('.diagram svg').length") == 14

    play(story)


def test_a_value_stands_in_its_own_bar(play: Callable[[Story], None]) -> None:
    async def story(browser: Browser) -> None:
        found = await browser.evaluate(
            "[...document.querySelectorAll('#figure-service-migration-time .bars .point')].map(point => {"
            " const bar = point.querySelector('path').getBoundingClientRect(),"
            " text = point.querySelector('text').getBoundingClientRect();"
            " return [text.top >= bar.top - 2, text.bottom <= bar.bottom + 2, text.left >= bar.left - 1,"
            " text.left <= bar.left + 12]; })"
        )
        assert found == [[True] * 4] * 2

    play(story)


def test_the_frames_of_a_packet_are_under_the_pointer(play: Callable[[Story], None]) -> None:
    async def story(browser: Browser) -> None:
        await browser.evaluate(f"{FIRST_TIMELINE}.scrollIntoView({{block: 'center'}})")
        place = await browser.evaluate(
            "(() => { const plot = " + FIRST_TIMELINE + ";"
            " const marks = plot.data.findIndex(trace => trace.name === 'useful data came, new address');"
            " const points = plot.querySelectorAll('.scatterlayer .trace');"
            " const drawn = plot._fullData.filter(trace => trace.type === 'scatter');"
            " const index = drawn.findIndex(trace => trace.index === marks);"
            " const box = points[index].querySelector('.point').getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        await browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] - 40, y=place[1] + 30)
        await browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        await browser.wait_for(f"{FIRST_TIMELINE}.querySelector('.hoverlayer .hovertext') !== null")
        text = await browser.evaluate(f"{FIRST_TIMELINE}.querySelector('.hoverlayer').textContent")
        assert "STREAM" in text
        assert "bytes" in text
        assert "10.0.2.2:4433" in text

    play(story)


def test_a_timeline_is_used_by_keyboard(play: Callable[[Story], None]) -> None:
    async def story(browser: Browser) -> None:
        await browser.evaluate(f"{FIRST_TIMELINE}.focus()")
        assert await browser.evaluate(f"document.activeElement === {FIRST_TIMELINE}")
        low, high = await browser.evaluate(RANGE)
        await browser.press("+")
        closer = await browser.evaluate(RANGE)
        assert closer[1] - closer[0] == pytest.approx((high - low) * 0.6)
        await browser.press("ArrowRight")
        moved = await browser.evaluate(RANGE)
        assert moved[0] > closer[0]
        await browser.press("-")
        await browser.press("0")
        assert await browser.evaluate(RANGE) == [low, high]
        await browser.press("n")
        await browser.wait_for(f"{FIRST_TIMELINE}.querySelector('.hoverlayer .hovertext') !== null")
        first = await browser.evaluate(f"{FIRST_TIMELINE}.querySelector('.hoverlayer').textContent")
        await browser.press("n")
        assert "ms" in first
        shown = f"{FIRST_TIMELINE}.querySelector('.hoverlayer').textContent"
        await browser.wait_for(f"{shown} !== {json.dumps(first)} && {shown}.includes('ms')")

    play(story)


def test_a_narrow_screen_scrolls_figures_and_not_the_page(play: Callable[[Story], None]) -> None:
    async def story(browser: Browser) -> None:
        await browser.size(390, 800)
        await browser.wait_for("window.innerWidth === 390")
        assert await browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert await browser.evaluate(f"{PLOTS}.every(plot => plot.getBoundingClientRect().width >= 500)")

    play(story)


def test_the_page_can_be_printed(play: Callable[[Story], None]) -> None:
    async def story(browser: Browser) -> None:
        printed = await browser.call("Page.printToPDF", printBackground=True)
        assert len(base64.b64decode(printed["data"])) > 50_000
        widths = await browser.evaluate(f"{PLOTS}.map(plot => plot._fullLayout.width)")
        assert all(width > 700 for width in widths), "the screen has its own width again"

    play(story)
