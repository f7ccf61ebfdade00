"""The page of results, and of two outputs' differences: what is on it, and that nothing of a text becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from batchgen.proof.answers_page import render_differences, render_results
from batchgen.proof.diff import Comparison, diff_results
from batchgen.records import Logprobs, Result
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
