"""Columns named like options, which have no effect there."""

from __future__ import annotations

from typing import Any

import pytest

from batchgen.formats.option_columns import warn_of_option_columns
from batchgen.formats.rows import ReadOptions, Row
from batchgen.records import Request, Sequence


def warning_of(columns: dict[str, Any], **options: Any) -> str:
    said: list[str] = []
    rows = [Row("a", metadata=columns, source="rows.csv:2")] * 2
    assert len(list(warn_of_option_columns(rows, ReadOptions(**options), said.append))) == 2
    assert len(said) <= 1
    return "".join(said)


@pytest.mark.parametrize(
    ("columns", "example"),
    [
        ({"max_tokens": 5}, '{"max_new_tokens": 5}'),
        ({"maxTokens": "5"}, '{"max_new_tokens": 5}'),
        ({"max-new-tokens": 5.0}, '{"max_new_tokens": 100}'),
        ({"temperature": "0.5"}, '{"temperature": 0.5}'),
        ({"stop": "END"}, '{"stop": "END"}'),
        ({"logit_bias": {"7": 1}}, '{"logit_bias": {"7": 1}}'),
        ({"ignore_eos": True}, '{"ignore_eos": true}'),
        ({"sampling_params": {"max_tokens": 5, "minTokens": 1}}, '{"max_new_tokens": 5, "min_new_tokens": 1}'),
        ({"options": {"topP": 0.5}}, '{"max_new_tokens": 100}'),  # greedy rows have no top_p
        ({"generation_config": {"max_new_tokens": -1}}, '{"max_new_tokens": 100}'),
    ],
    ids=str,
)
def test_the_warning_has_an_example_that_would_work(columns: dict[str, Any], example: str) -> None:
    [name] = columns
    line = f"rows.csv: the column {name} is kept as metadata, without effect: a row's options go in its sampling, "
    assert warning_of(columns) == f'{line}such as {{"sampling": {example}}}'


@pytest.mark.parametrize(
    "columns",
    [
        {"temperature": "23 C"}, {"seed": "sunflower"}, {"n": 3}, {"temp": 23}, {"choice": "B"},
        {"grammar": "past tense"}, {"options": {"A": "yes", "seed": 1}}, {"ignore_eos": "no"}, {"stop": None},
        {"choices": ["a", "b"]}, {"plant": {}},
    ],
    ids=str,
)  # fmt: skip
def test_columns_that_mean_something_else_are_not_named(columns: dict[str, Any]) -> None:
    assert not warning_of(columns)


def test_a_column_that_is_used_is_not_named() -> None:
    assert not warning_of({"choice": ["a", "b"]}, choices_field="choice")
    assert warning_of({"choice": ["a", "b"]})


def test_an_error_has_its_row_s_place_also_in_a_row_that_shares_its_answer() -> None:
    first, twin = (Sequence(Request(i, i, "a", source=f"rows.csv:{i}"), 0, [1]) for i in (1, 2))
    first.fail("no such token")
    first.fail(first.error or "")
    twin.copy_answer(first)
    assert (first.error, twin.error) == ("rows.csv:1: no such token", "rows.csv:2: no such token")
