"""The page of results in headless Chromium, opened from a file: ten thousand rows, searched, filtered and sorted.

A card has no text until the browser has drawn it (`content-visibility: auto`), so tests wait for the contents of cards.
"""

from __future__ import annotations

from typing import Any

import pytest

from batchgen.proof.answers_page import render_results, render_scores
from batchgen.records import Logprobs, RowScore, ScoredText
from tests.support.results import result_of

pytestmark = pytest.mark.browser
NUM_ROWS = 10_000
MARKUP = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
LOGPROBS = Logprobs((845, 1611), (" very", " kind"), (-0.05, -3.0), ((), ()))


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    results = [
        result_of(f" answer {index}", index=index, id=str(index), metadata={"topic": index % 7})
        for index in range(NUM_ROWS)
    ]
    results[0] = result_of(
        " very kind", id="0", prompt=MARKUP, logprobs=LOGPROBS, finish_reason="stop", metadata={"topic": 0}
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_results(results, "out.jsonl", {}), encoding="utf-8")
    tab = browser.new_page()
    tab.requests = []
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("article")
    return tab


def test_of_ten_thousand_rows_a_part_is_drawn_and_any_is_found(opened: Any, expect: Any) -> None:
    assert opened.locator("#count").inner_text() == "10,000 rows"
    assert opened.locator("article").count() < 200
    opened.fill("#search", "answer 9999")
    assert opened.locator("#count").inner_text() == "1 of 10,000 rows"
    expect(opened.locator("article")).to_contain_text("answer 9999")
    opened.fill("#search", "")


def test_rows_are_filtered_and_sorted(opened: Any, expect: Any) -> None:
    opened.select_option("#reason", "stop")
    assert opened.locator("#count").inner_text() == "1 of 10,000 rows"
    opened.select_option("#reason", "")
    opened.select_option("#sort", "topic")
    opened.check("#down")
    expect(opened.locator("article").first).to_contain_text("topic: 6")
    opened.uncheck("#down")
    opened.select_option("#sort", "")


def test_tokens_are_coloured_and_ids_are_there_when_asked(opened: Any, expect: Any) -> None:
    first = opened.locator("article").first
    expect(first.locator(".pieces .p3")).to_have_text(" kind")
    first.locator("summary").click()
    expect(first.locator("pre")).to_contain_text("output_ids  845 1611")
    expect(first.locator("pre")).to_contain_text("(5 × 0) 1 1 1")


def test_scrolling_draws_more(opened: Any) -> None:
    before = opened.locator("article").count()
    opened.locator("#more").scroll_into_view_if_needed()
    opened.locator("article").nth(before).wait_for()


def test_nothing_of_a_text_runs_and_nothing_is_asked_of_the_network(opened: Any) -> None:
    assert opened.evaluate("window.hacked") is None
    assert len(opened.requests) == 1


def test_it_fits_on_a_phone(opened: Any) -> None:
    opened.set_viewport_size({"width": 360, "height": 740})
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def scores(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    top = (((7, -0.2), (8, -2.0)), ((9, -1.0), (1611, -8.0)))
    logprobs = Logprobs((845, 1611), (" very", " kind"), (-0.05, -8.0), top, ((" so", " quite"), (" <b>big", " kind")))
    score = RowScore("text", (ScoredText(" very kind", -8.05, 2, False, logprobs),))
    path = tmp_path_factory.mktemp("scores") / "page.html"
    path.write_text(render_scores([result_of(" very kind", score=score)], "scores", {}), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    tab.wait_for_selector("article")
    return tab


def test_a_token_that_is_pointed_at_shows_what_else_was_likely(scores: Any) -> None:
    token = scores.locator(".pieces span", has_text="kind")
    assert token.get_attribute("class") == "p4"
    assert scores.locator("#tip").is_hidden()
    token.hover()
    assert scores.locator("#tip p").inner_text() == "log-probability -8 · 11.54 bits"
    assert scores.locator("#tip div").all_inner_texts() == ["·<b>big\n36.8%", "·kind\n0.03%"]
    scores.mouse.move(0, 0)
    assert scores.locator("#tip").is_hidden()


def test_arrow_keys_go_from_token_to_token(scores: Any) -> None:
    scores.locator(".pieces").focus()
    scores.keyboard.press("ArrowRight")
    assert "·very" in scores.locator("#tip .own").inner_text()
    scores.keyboard.press("ArrowRight")
    assert "·kind" in scores.locator("#tip .own").inner_text()
    scores.keyboard.press("Escape")
    assert scores.locator("#tip").is_hidden()
