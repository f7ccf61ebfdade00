"""The pages of results and of two outputs' differences: what they contain, and that no text becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from batchgen.proof.answers_page import render_differences, render_results, render_scores
from batchgen.proof.answers_page.scores import MOST_TOKENS, ScoredRows
from batchgen.proof.diff import Comparison, diff_results
from batchgen.records import Logprobs, Result, RowScore, ScoredText
from tests.support.command import failure, invoke, run
from tests.support.results import UNSAFE, result_of

MARKUP = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\x1b[31m"


def data_of(page: str) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def rows_of(*results: Result) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = data_of(render_results(results, "out.jsonl", {}))["rows"]
    return rows


def test_a_row_has_its_prompt_answer_and_columns() -> None:
    [row] = rows_of(result_of())
    assert (row["id"], row["prompt"], row["metadata"], row["inputIds"], row["pads"]) == (
        "d1", "My dog is", {"topic": "dogs"}, [3666, 3290, 318], 5,
    )  # fmt: skip
    assert row["answers"] == [{"text": " very kind", "reason": "length", "tokens": 2, "ids": [845, 1611]}]


def test_a_conversation_is_its_turns() -> None:
    [row] = rows_of(result_of(messages=[{"role": "user", "content": "Hi"}], reasoning="Hm"))
    assert row["turns"] == [["user", "Hi"]]
    assert row["answers"][0]["reasoning"] == "Hm"


def test_tokens_have_their_logprobs() -> None:
    logprobs = Logprobs((845, 1611), (" very", " kind"), (-0.5, -1.5), ((), ()))
    [row] = rows_of(result_of(logprobs=logprobs, cumulative_logprob=-2.0))
    assert row["answers"][0]["pieces"] == [[" very", -0.5], [" kind", -1.5]]
    assert row["answers"][0]["score"] == -2.0


def test_nothing_of_a_text_becomes_markup_or_script() -> None:
    hostile = result_of(MARKUP, id=MARKUP, prompt=MARKUP, metadata={MARKUP: MARKUP}, error=MARKUP, reasoning=MARKUP)
    page = render_results([hostile], MARKUP, {"model": MARKUP})
    assert page.count("<script") == 2
    assert "<img" not in page
    assert not set(page) & (set(UNSAFE) - {"\n", "\t"})


def test_two_outputs_stand_side_by_side_from_where_they_part() -> None:
    a = result_of(" a\x1bvery kind")
    differences = diff_results([a], [result_of(" a\x1bvery bad", output_ids=(845, 7))], Comparison())
    [row] = data_of(render_differences(differences, "a and b", {}))["rows"]
    assert (row["place"], row["token"]) == (len(" a\\x1bvery "), 1)
    assert [answer["text"] for answer in row["answers"]] == [" a\\x1bvery kind", " a\\x1bvery bad"]


# The commands.


def test_a_page_is_written_beside_an_output(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run("-p", "My dog is", "-p", "", "-o", output)
    said = invoke("page", output)
    assert said.exit_code == 0
    assert f"wrote {output}.html" in said.stderr
    page = (tmp_path / "out.jsonl.html").read_text()
    assert [row["prompt"] for row in data_of(page)["rows"]] == ["My dog is", ""]
    assert "exists" in failure(invoke("page", output), 1)
    assert "is also an input" in failure(invoke("page", output, "-o", output, "--overwrite"), 1)
    assert data_of(invoke("page", output, "-o", "-", "--limit", 1).stdout) == {
        **data_of(page),
        "rows": data_of(page)["rows"][:1],
    }
    assert "1 more rows are not on this page" in invoke("page", output, "-o", "-", "--limit", 1).stdout


@pytest.mark.parametrize("name", ["out.jsonl", "out.db", "out.parquet"])
def test_a_run_writes_its_page_too(tmp_path: Path, name: str) -> None:
    said = run("-p", "My dog is", "-o", tmp_path / name, "--html", tmp_path / "page.html")
    assert said.exit_code == 0
    assert f"{tmp_path / name}, {tmp_path / 'page.html'}" in said.stderr
    assert len(data_of((tmp_path / "page.html").read_text())["rows"]) == 1


def test_a_run_without_rows_to_read_again_has_no_page(tmp_path: Path) -> None:
    for options in ([], ["-o", tmp_path / "a.txt"]):
        assert "--html needs a file" in failure(run("-p", "My dog is", "--html", tmp_path / "p.html", *options), 2)


def test_diff_writes_a_page_of_the_rows_that_differ(tmp_path: Path) -> None:
    run("-p", "My dog is", "-o", tmp_path / "a.jsonl")
    run("-p", "My dog is", "-o", tmp_path / "b.jsonl", "--max-new-tokens", 3)
    said = invoke("diff", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--html", tmp_path / "d.html")
    assert said.exit_code == 4
    page = (tmp_path / "d.html").read_text()
    assert data_of(page)["names"] == ["A", "B"]
    assert "1 of 1 row differ" in page
    both = invoke("diff", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--html", tmp_path / "e.html", "--json")
    assert "choose one" in failure(both, 2)


# Scores.


def scored_result(text: str, tokens: tuple[str, ...], **changes: Any) -> Result:
    numbers = tuple(-1.0 - place for place in range(len(tokens)))
    ids = tuple(range(len(tokens)))
    top = tuple(((7, -0.5), (place, number)) for place, number in enumerate(numbers))
    logprobs = Logprobs(ids, tokens, numbers, top, tuple((" else", token) for token in tokens))
    score = RowScore("text", (ScoredText(text, sum(numbers), len(tokens), False, logprobs),))
    return result_of(text, **{"prompt": "", "score": score, **changes})


def test_a_scored_text_has_pieces_with_what_else_was_likely() -> None:
    page = render_scores([scored_result("a é", ("a", " ", "\ufffd", "\ufffd"))], "scores", {}, left_out=3)
    [row] = data_of(page)["rows"]
    [answer] = row["answers"]
    assert answer["pieces"] == [
        ["a", -1.0, [[" else", -0.5], ["a", -1.0]]], [" ", -2.0, [[" else", -0.5], [" ", -2.0]]], ["é", -7.0],
    ]  # fmt: skip
    assert "log-probability -10.000 in 4 tokens, -2.500 each" in answer["head"]
    assert "3 more rows are not on this page" in page


def test_nothing_of_a_scored_text_becomes_markup() -> None:
    page = render_scores([scored_result(MARKUP, (MARKUP,), metadata={MARKUP: MARKUP})], MARKUP, {})
    assert page.count("<script") == 2
    assert "<img" not in page


def test_a_page_of_scores_holds_a_bounded_number_of_tokens() -> None:
    kept = ScoredRows()
    rows = [result_of(index=index, num_output_tokens=MOST_TOKENS // 2) for index in range(5)]
    assert [row.index for row in kept.watch(rows)] == [0, 1, 2, 3, 4]
    assert ([row.index for row in kept.rows], kept.left_out) == ([0, 1], 3)


@pytest.mark.parametrize("output", [(), ("-o", "out.jsonl"), ("-o", "out.db")])
def test_score_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "My dog is", "choices": [" a very nice dog", " Tuesday"], "answer": 0}, {"text": ""}]
    stdin = "".join(json.dumps(row) + "\n" for row in rows)
    said = invoke("score", "--model", "bundled", "--html", "page.html", *output, stdin=stdin)
    assert said.exit_code == 3
    assert "page.html" in said.stderr
    page = (tmp_path / "page.html").read_text()
    first, failed = data_of(page)["rows"]
    assert first["answers"][0]["head"].startswith("choice 0 · best")
    assert [piece for piece, *_ in first["answers"][1]["pieces"]] == [" Tuesday"]
    assert len(first["answers"][1]["pieces"][0][2]) == 5
    assert "empty" in failed["answers"][0]["error"]
    assert "accuracy <b>100.00%</b>" in page
