"""The report in a real browser: offline, by keyboard, on a phone, in the dark, on paper."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report_sample import HACK, sample

from evaluator.report.document import Reading
from evaluator.report.page import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 375, "height": 812}
NEVER_BREAKS = "x" * 400

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser's driver is missing: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=90_000)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    odd = Reading(
        NEVER_BREAKS, NEVER_BREAKS, (NEVER_BREAKS,) * 9, (NEVER_BREAKS,), {"f": NEVER_BREAKS}, tags=(NEVER_BREAKS,)
    )
    whole = sample()
    return write(replace(whole, readings=[*whole.readings, odd]), tmp_path_factory.mktemp("report"))


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Open]:
    """Opens the report; a request for anything but the file, an error or a word on the console fails the test."""
    asked: list[str] = []
    said: list[str] = []
    contexts: list[Any] = []

    def go(fragment: str = "", viewport: dict[str, int] = DESK, **options: Any) -> Page:
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(report.as_uri() + fragment)
        return page

    yield go
    for context in contexts:
        context.close()
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:,")} == {report.as_uri()}
    assert said == []


def shown(page: Page) -> int:
    return page.locator(".reading:visible").count()


def open_readings(page: Page) -> list[str]:
    return page.eval_on_selector_all(".reading[open]", "all => all.map(each => each.id)")


def test_it_opens_offline_and_text_stays_text(opened: Open):
    page = opened()
    assert page.title() == sample().title
    assert page.locator(".chart svg").count() == 6
    assert shown(page) == 61
    page.locator("#search").fill(HACK.upper())
    assert shown(page) == 2
    page.locator(".reading:visible").first.locator("summary").first.click()
    assert HACK in page.locator(".reading[open]").inner_text()
    assert page.evaluate("window.hacked") is None


def test_the_policy_stops_what_would_get_in(browser: Browser, report: Path, tmp_path: Path):
    broken = tmp_path / "report.html"
    inner = "<script>window.hacked=1</script><img src=http://127.0.0.1:9/x.png onerror='window.hacked=2'>"
    broken.write_text(report.read_text().replace("</main>", inner + "</main>"))
    context = browser.new_context()
    page = context.new_page()
    refused: list[str | None] = []
    page.on("requestfailed", lambda request: refused.append(request.failure))
    page.goto(broken.as_uri())
    assert page.evaluate("window.hacked") is None
    assert refused == ["csp"]
    assert page.locator("#shown").inner_text() == "61 shown"  # while its own script runs
    context.close()


def test_narrowed_by_words_and_subset(opened: Open):
    page = opened()
    page.locator("#tag").select_option(label="gardening (8)")
    assert shown(page) == 8
    assert page.locator("#shown").inner_text() == "8 of 61 shown"
    page.locator("#search").fill("no such words")
    assert shown(page) == 0
    assert page.locator("#nothing").is_visible()
    page.keyboard.press("Escape")
    assert shown(page) == 8
    page.locator("#tag").select_option(label="all")
    assert shown(page) == 61


def test_by_keyboard_alone(opened: Open):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("j")
    assert open_readings(page) == ["reading-1"]
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert open_readings(page) == ["reading-3"]
    page.keyboard.press("k")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("k")
    assert open_readings(page) == ["reading-1"]
    assert page.evaluate("document.activeElement.parentElement.id") == "reading-1"
    style = "getComputedStyle(document.activeElement)"
    assert page.evaluate(f"{style}.outlineStyle") == "solid"
    assert (
        page.locator("#reading-1 summary").first.bounding_box()["y"]
        >= page.locator("#controls").bounding_box()["height"]
    )
    page.keyboard.press("Enter")
    assert open_readings(page) == []
    page.keyboard.press("/")
    page.keyboard.type("jkjk/")
    assert page.locator("#search").input_value() == "jkjk/"
    assert open_readings(page) == []


def test_keys_go_through_what_is_shown(opened: Open):
    page = opened()
    page.locator("#tag").select_option(label="gardening (8)")
    page.locator("h1").click()
    page.evaluate("document.activeElement.blur()")
    ids = page.eval_on_selector_all(".readings > li:not([hidden]) > .reading", "all => all.map(each => each.id)")
    for each in [*ids, ids[-1]]:
        page.keyboard.press("j")
        assert open_readings(page) == [each]


def test_an_address_opens_its_reading(opened: Open):
    assert open_readings(opened("#reading-5")) == ["reading-5"]


@pytest.mark.parametrize("viewport", [PHONE, {"width": 320, "height": 600}, DESK], ids=["phone", "small", "desk"])
def test_the_page_never_scrolls_sideways(opened: Open, viewport: dict[str, int]):
    page = opened(viewport=viewport)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    first, second = (page.locator("#reading-1 .response").nth(at).bounding_box() for at in (0, 1))
    assert first
    assert second
    assert (first["y"] == second["y"]) == (viewport == DESK)


def test_dark_screens_get_a_dark_page_with_charts_to_match(opened: Open):
    def brightness(page: Page, selector: str, what: str) -> float:
        colour = page.locator(selector).first.evaluate(f"each => getComputedStyle(each).{what}")
        return sum(map(float, colour.removeprefix("rgb(").rstrip(")").split(",")))

    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    for selector, what in (("html", "backgroundColor"), ("body", "color"), (".chart text", "fill")):
        paper_is_light = what == "backgroundColor"
        assert (brightness(light, selector, what) > brightness(dark, selector, what)) == paper_is_light
    dark.emulate_media(media="print")
    assert brightness(dark, "body", "color") < 150


def test_on_paper_readings_are_open_and_controls_are_gone(opened: Open):
    page = opened()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(open_readings(page)) == 20
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert open_readings(page) == []
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_scripts_everything_is_there(opened: Open):
    page = opened(java_script_enabled=False)
    assert not page.locator("#controls").is_visible()
    assert shown(page) == 61
    page.locator("#reading-1 summary").first.click()
    assert page.locator("#reading-1 .response").first.is_visible()
