"""The page of `inspect --html` in headless Chromium, opened from a file: what it shows, and what its controls change.

Needs Debian's Chromium and the extra `browser`; skipped if either is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen import Model
from batchgen.proof.inspector import inspect_batch, parse_heads
from batchgen.proof.inspector.attention import inspect_attention
from batchgen.proof.inspector.whole import inspect_all
from batchgen.proof.page import render_page
from tests.support.rows import RAIN, requests_of

pytestmark = pytest.mark.browser
MARKUP = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


class Opened:
    """A page in a tab, with all its messages and requests."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page()
        self.tab.on("console", lambda message: self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.url = path.as_uri()
        self.tab.goto(self.url)

    def text(self, selector: str) -> str:
        return " ".join(self.tab.locator(selector).inner_text().split())

    def cell(self, row: int, column: int) -> Any:
        return self.tab.locator("#grid tr").nth(row).locator("td").nth(column)

    def shades(self, row: int) -> list[float]:
        """Return how dark each cell of a row is: the square root of its weight."""
        cells = self.tab.locator("#grid tr").nth(row).locator("td")
        return [float(c) for c in cells.evaluate_all("all => all.map(c => c.style.getPropertyValue('--weight'))")]

    def slide(self, name: str, value: int) -> None:
        self.tab.locator(f"#{name}").fill(str(value))

    def map_pixels(self) -> str:
        return str(self.tab.evaluate("document.getElementById('map').toDataURL()"))


def write_page(model: Model, prompts: list[str], path: Path, most_columns: int = 64) -> Path:
    inspection = inspect_batch(model.checkpoint, requests_of(prompts))
    path.write_text(render_page(inspection, *inspect_all(model, inspection, most_columns)), encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Any, bundled: Model, tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(browser, write_page(bundled, RAIN, tmp_path / "page.html"))
    yield opened
    assert opened.errors == []
    assert opened.requests == [opened.url]
    opened.tab.close()


def test_the_last_token_of_a_row_with_pads_is_the_query_at_first(page: Opened) -> None:
    assert page.text("#details").startswith("token ·is id 318 row 2 column 7 position 2 mask 1 attends to")
    assert page.text("#details").endswith("on pads 0")


def test_the_weights_are_those_of_the_model(page: Opened, bundled: Model) -> None:
    inspection = inspect_batch(bundled.checkpoint, requests_of(RAIN))
    for value, heads in ((0, "0:0"), (3, "0:3"), (6, "0:mean")):
        page.slide("head", value)
        row = inspect_attention(bundled, inspection, parse_heads(heads))[2]
        shares = [shade**2 for shade in page.shades(2)]
        assert shares == pytest.approx(row.weights, abs=0.005)
        page.tab.click("#mask")
        shares = [shade**2 for shade in page.shades(2)]
        assert shares == pytest.approx(row.weights_without_mask, abs=0.005)
        page.tab.click("#mask")


def test_hovering_and_clicking_choose_the_query(page: Opened) -> None:
    page.cell(1, 3).hover()
    assert page.text("#details").startswith("token ·eat id 4483 row 1 column 3 position 3 mask 1")
    page.tab.mouse.move(2, 2)
    assert page.text("#details").startswith("token ·is")
    page.cell(1, 3).click()
    page.tab.mouse.move(2, 2)
    assert page.text("#details").startswith("token ·eat")
    assert page.text("#weights caption") == "What ·eat attends to: layer 0, head 0"


def test_a_pad_says_that_it_is_one(page: Opened) -> None:
    page.cell(2, 0).click()
    assert "token pad id 50256 row 2 column 0 position 0 mask 0" in page.text("#details")
    assert page.shades(2) == [0.0] * 8


def test_the_mask_switch_gives_pads_their_share(page: Opened) -> None:
    before, drawn = page.shades(2), page.map_pixels()
    assert before[:5] == [0.0] * 5
    page.tab.click("#mask")
    assert page.tab.locator("#mask").get_attribute("aria-checked") == "false"
    assert all(shade > 0 for shade in page.shades(2))
    assert page.map_pixels() != drawn
    assert re.search(r"on pads \d+\.\d%$", page.text("#details"))
    assert page.tab.locator(".card ol.without").first.is_visible()
    assert not page.tab.locator(".card ol.with").first.is_visible()
    page.tab.click("#mask")
    assert (page.shades(2), page.map_pixels()) == (before, drawn)


@pytest.mark.parametrize("name", ["layer", "head"])
def test_sliders_change_the_attention_and_end_in_the_mean(page: Opened, name: str) -> None:
    seen = []
    for value in range(7):
        page.slide(name, value)
        seen.append((page.shades(2), page.map_pixels(), page.text(f"#{name}-name")))
    assert len({tuple(shades) for shades, _, _ in seen}) == len({pixels for _, pixels, _ in seen}) == 7
    assert [label for _, _, label in seen] == ["0", "1", "2", "3", "4", "5", "mean"]


def test_what_stands_below_the_tokens_can_be_chosen(page: Opened) -> None:
    page.tab.check("input[value=mask]")
    assert page.text("#grid tr:nth-child(3)") == "2 5 + 3 pad 0 pad 0 pad 0 pad 0 pad 0 My 1 ·dog 1 ·is 1"
    page.tab.check("input[value=positions]")
    assert page.text("#grid tr:nth-child(3)").endswith("My 0 ·dog 1 ·is 2")


def test_the_keyboard_is_enough(page: Opened) -> None:
    page.cell(2, 7).focus()
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("ArrowLeft")
    assert page.text("#details").startswith("token ·bowl")
    page.tab.keyboard.press("Home")
    assert page.text("#details").startswith("token I ")
    focusable = "#grid td[tabindex='0']"
    assert page.tab.locator(focusable).count() == 1
    page.tab.keyboard.press("Tab")
    page.tab.keyboard.press("Tab")
    assert page.tab.evaluate("document.activeElement.id") in ("layer", "head")


def test_themes_follow_the_system_until_one_is_chosen(page: Opened) -> None:
    def paper() -> str:
        return str(page.tab.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.tab.emulate_media(color_scheme="light")
    light = paper()
    page.tab.emulate_media(color_scheme="dark")
    dark = paper()
    assert light != dark
    page.tab.click("#theme")
    assert (page.text("#theme"), paper()) == ("Theme: light", light)
    page.tab.click("#theme")
    page.tab.emulate_media(color_scheme="light")
    assert (page.text("#theme"), paper()) == ("Theme: dark", dark)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_sticks_out_of_the_window(page: Opened, width: int) -> None:
    page.tab.set_viewport_size({"width": width, "height": 800})
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_on_paper_nothing_is_cut_off_and_controls_are_gone(page: Opened) -> None:
    page.tab.emulate_media(media="print")
    assert not page.tab.locator("#theme").is_visible()
    assert page.tab.evaluate("getComputedStyle(document.querySelector('.tall')).overflowY") == "visible"


def test_everything_has_a_name_for_screen_readers(page: Opened) -> None:
    unnamed = page.tab.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas, table, section, [role]")].filter(e =>
            !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.labels?.length
              || e.textContent.trim())).map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_text_from_prompts_runs_nowhere(browser: Any, bundled: Model, tmp_path: Path) -> None:
    opened = Opened(browser, write_page(bundled, ["a b c", MARKUP], tmp_path / "page.html"))
    opened.cell(1, 2).hover()
    opened.tab.click("#mask")
    assert opened.tab.evaluate("window.hacked") is None
    assert (opened.errors, opened.requests) == ([], [opened.url])
    assert opened.tab.locator("img").count() == 0


def test_columns_left_out_keep_their_weight(browser: Any, bundled: Model, tmp_path: Path) -> None:
    opened = Opened(browser, write_page(bundled, RAIN, tmp_path / "page.html", most_columns=4))
    opened.cell(0, 7).click()
    inspection = inspect_batch(bundled.checkpoint, requests_of(RAIN))
    [row, *_] = inspect_attention(bundled, inspection, parse_heads("0:0"))
    assert [shade**2 for shade in opened.shades(0)][4:] == pytest.approx(row.weights[4:], abs=0.005)
    lines = opened.tab.locator("#weights tbody tr").all_inner_texts()
    assert lines[0].startswith("«3 pads»")
    assert lines[1].startswith("«1 text»")
    opened.cell(0, 2).click()
    assert "not in this page" in opened.text("#details") or "nothing that counts" in opened.text("#details")
    assert opened.errors == []


def test_a_phone_opens_at_the_pads_and_says_that_there_is_more(page: Opened) -> None:
    page.tab.set_viewport_size({"width": 380, "height": 800})
    page.tab.reload()
    assert page.tab.evaluate("document.querySelector('.scroll').scrollLeft") == 0
    assert page.tab.locator("#cue").is_visible()
    page.tab.evaluate("document.querySelector('.scroll').scrollLeft = 9999")
    page.tab.wait_for_selector("#cue", state="hidden")
    page.tab.set_viewport_size({"width": 1280, "height": 800})
    page.requests.pop()  # the reload


def test_pads_go_to_the_right_and_come_back(page: Opened) -> None:
    before, row = page.shades(2), page.text("#grid tr:nth-child(3)")
    page.tab.check("input[value=right]")
    assert page.text("#grid tr:nth-child(3)").startswith("2 5 + 3 My 3666 ·dog 3290 ·is 318 pad")
    assert page.shades(2) == before[5:] + before[:5]
    assert "column 2 position 2" in page.text("#details")
    assert page.tab.locator("#mask").is_disabled()
    page.cell(2, 2).focus()
    page.tab.keyboard.press("ArrowRight")
    assert page.text("#details").startswith("token pad")
    page.tab.check("input[value=left]")
    page.cell(2, 7).click()
    assert (page.shades(2), page.text("#grid tr:nth-child(3)")) == (before, row)
    assert not page.tab.locator("#side-note").is_visible()


@pytest.mark.parametrize(("width", "panel"), [(1400, "#attention"), (390, "#details")])
def test_with_many_rows_the_panel_stays_beside_the_token(
    browser: Any, bundled: Model, tmp_path: Path, width: int, panel: str
) -> None:
    opened = Opened(browser, write_page(bundled, RAIN * 14, tmp_path / "page.html"))
    opened.tab.set_viewport_size({"width": width, "height": 800})
    opened.cell(40, 3).scroll_into_view_if_needed()
    opened.cell(40, 3).click()
    box, cell = opened.tab.locator(panel).bounding_box(), opened.cell(40, 3).bounding_box()
    assert 0 <= box["y"] < 800
    assert 0 <= cell["y"] < 800
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.errors == []
    opened.tab.close()
