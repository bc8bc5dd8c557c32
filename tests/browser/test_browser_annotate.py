"""A person votes in a real browser: by keyboard and by touch, through a server that is killed, on hostile texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from annotating import Page, page, votes, write

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
ROWS = [{"id": f"row {n}", "prompt": f"Question {n}?", "responses": [f"left {n}", f"right {n}"]} for n in range(8)]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: make test-browser"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: api.Browser) -> Iterator[api.Page]:
    """A tab in which the browser must have nothing to complain of."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        yield watched(context)


def watched(context: api.BrowserContext) -> api.Page:
    made = context.new_page()
    made.on("pageerror", lambda error: pytest.fail(str(error)))
    made.on("console", lambda said: pytest.fail(said.text) if said.type == "error" else None)
    return made


def press(tab: api.Page, key: str) -> None:
    with tab.expect_navigation():
        tab.keyboard.press(key)


def shown(tab: api.Page) -> list[str]:
    return tab.locator(".response .text").all_inner_texts()


def count(tab: api.Page) -> str:
    return tab.locator(".count").inner_text()


def serve(folder: Path, rows: list[dict[str, object]], *words: str):
    return page(folder, write(folder / "in.jsonl", rows), "--raters", "ann,bob", *words)


def stopped(it: Page, folder: Path) -> dict[str, list[dict[str, object]]]:
    it.stop()
    return votes(folder)


def test_votes_by_keyboard_survive_a_server_that_is_killed(tab, tmp_path):
    expected: dict[str, object] = {}

    def choose(side: str) -> None:
        texts = shown(tab)
        at = next(place for place, text in enumerate(texts) if side in text)
        press(tab, "12"[at] if len(expected) % 2 else ("ArrowLeft", "ArrowRight")[at])
        expected[f"row {texts[0].split()[1]}"] = ["left", "right"].index(side)

    with serve(tmp_path, ROWS) as it:
        link = it.links["ann"]
        tab.goto(link)
        choose("left")
        choose("right")
        tie = shown(tab)[0].split()[1]
        press(tab, "t")
        expected[f"row {tie}"] = "tie"
        before = shown(tab)
        it.kill()
    with serve(tmp_path, ROWS, "--port", str(it.port)) as again:
        tab.goto(link)
        assert (count(tab), shown(tab)) == ("3 of 8", before)
        choose("left")
        press(tab, "s")
        choose("right")
        said = stopped(again, tmp_path)
    assert {name: vote["choice"] for name, (vote,) in said.items()} == expected


def test_how_much_better_is_one_key_before_the_vote(tab, tmp_path):
    with serve(tmp_path, ROWS) as it:
        tab.goto(it.links["ann"])
        for keys in ("q1", "e2", "ww1", "2"):
            for key in keys[:-1]:
                tab.keyboard.press(key)
            press(tab, keys[-1])
        said = stopped(it, tmp_path)
    strengths = [vote["strength"] for votes in said.values() for vote in votes]
    assert sorted(map(str, strengths)) == ["None", "None", "significantly", "slightly"]


def test_undo_shows_what_was_judged_last_and_takes_another_vote(tab, tmp_path):
    with serve(tmp_path, ROWS) as it:
        tab.goto(it.links["ann"])
        first = shown(tab)
        press(tab, "1")
        press(tab, "u")
        assert shown(tab) == first
        assert tab.get_by_role("status").inner_text().startswith("Taken back")
        press(tab, "2")
        (vote,) = stopped(it, tmp_path).popitem()[1]
    assert vote["choice"] == ["left", "right"].index(first[1].split()[0])


def test_a_key_held_down_or_pressed_with_others_or_typed_in_a_field_is_no_vote(tab, tmp_path):
    with serve(tmp_path, ROWS) as it:
        tab.goto(it.links["ann"])
        for key in ("Control+1", "Alt+1", "Enter", "x", "Space"):
            tab.keyboard.press(key)
        tab.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', code: 'Digit1', repeat: true}))")
        tab.locator("input[name=strength]").first.focus()
        for key in ("ArrowRight", "Enter"):
            tab.keyboard.press(key)
        tab.wait_for_timeout(200)
        assert count(tab) == "0 of 8"
        assert tab.locator("input[name=strength]:checked").get_attribute("value") == "better"


def test_two_presses_at_once_are_one_vote(tab, tmp_path):
    with serve(tmp_path, ROWS) as it:
        tab.goto(it.links["ann"])
        with tab.expect_navigation():
            tab.evaluate("for (const button of document.querySelectorAll('button.choice')) button.click()")
        assert count(tab) == "1 of 8"


def test_texts_of_the_data_are_shown_and_never_run(tab, tmp_path):
    rows = [{"id": "x", "prompt": SCRIPT, "responses": [SCRIPT, "  two\n\n    four"], "models": [SCRIPT, "m"]}]
    with serve(tmp_path, rows) as it:
        tab.goto(it.links["ann"])
        assert sorted(shown(tab)) == sorted([SCRIPT, "  two\n\n    four"])
        assert tab.locator(".turn .text").inner_text() == SCRIPT
        assert tab.evaluate("window.hacked") is None
        assert tab.locator("script, img").count() == 1, "our own script, and nothing else"


def test_raters_do_not_see_one_another(browser, tab, tmp_path):
    with serve(tmp_path, ROWS) as it, browser.new_context() as other:
        tab.goto(it.links["ann"])
        press(tab, "1")
        bob = watched(other)
        bob.goto(it.links["bob"])
        assert count(bob) == "0 of 8"
        assert "ann" not in bob.locator("body").inner_text()
        press(bob, "t")
        assert sum(map(len, stopped(it, tmp_path).values())) == 2


def test_a_name_is_enough_where_nobody_was_named(tab, tmp_path):
    with page(tmp_path, write(tmp_path / "in.jsonl", ROWS)) as it:
        tab.goto(it.url)
        tab.wait_for_function("document.activeElement.matches('input')")  # the field has the keys from the start
        tab.keyboard.type("Tess Us")  # has the keys of tie, skip and undo in it
        press(tab, "Enter")
        assert tab.locator(".who").inner_text() == "Tess Us"
        press(tab, "1")
        assert count(tab) == "1 of 8"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390])
def test_it_works_on_a_phone(browser, tmp_path, width, scheme):
    phone = {"width": width, "height": 740}
    rows = [{"id": "x", "prompt": "w" * 400, "responses": ["long\n" * 200, "u" * 400]}]
    with (
        serve(tmp_path, rows) as it,
        browser.new_context(viewport=phone, is_mobile=True, has_touch=True, color_scheme=scheme) as context,
    ):
        tab = watched(context)
        tab.goto(it.links["ann"])
        tab.screenshot(path=tmp_path / f"phone-{width}-{scheme}.png")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off at the side"
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 25)"
        assert dark == (scheme == "dark")
        boxes = [button.bounding_box() for button in tab.locator(".votes button").all()]
        assert all(box["height"] >= 44 and box["y"] + box["height"] <= phone["height"] for box in boxes)
        with tab.expect_navigation():
            tab.get_by_role("button", name="B is better").tap()
        assert "All judged" in tab.get_by_role("heading").inner_text()


def test_it_works_without_javascript(browser, tmp_path):
    with serve(tmp_path, ROWS) as it, browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto(it.links["ann"])
        assert not tab.locator("kbd").first.is_visible()
        tab.get_by_role("radio", name="slightly").check()
        tab.keyboard.press("Enter")
        assert count(tab) == "0 of 8"
        tab.get_by_role("button", name="A is better").click()
        assert count(tab) == "1 of 8"
        tab.get_by_role("button", name="Undo: A").click()
        assert count(tab) == "0 of 8"


def test_every_control_has_a_name_and_focus_is_seen(tab, tmp_path):
    with serve(tmp_path, ROWS) as it:
        tab.goto(it.links["ann"])
        names = []
        for _ in range(5):
            tab.keyboard.press("Tab")
            names.append(
                tab.evaluate(
                    """() => {
                        const at = document.activeElement;
                        const seen = getComputedStyle(at.type === "radio" ? at.nextElementSibling : at);
                        return [at.ariaLabel || (at.labels?.[0] || at).innerText, seen.outlineStyle];
                    }"""
                )
            )
        assert all(name and outline == "solid" for name, outline in names), json.dumps(names)
        for role, name in (("progressbar", "Judged so far"), ("group", "How much better?"), ("region", "Response A")):
            assert tab.get_by_role(role, name=name).count() == 1
