"""Log-probabilities in every format that can hold them; a text table only has their sum."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from batchgen.formats.writing import WRITERS, WriteOptions
from batchgen.records import Logprobs, Result
from tests.support.results import result_of

LIKELY = Logprobs((845, 257), (" very", " a"), (-0.5, -1.5), (((845, -0.5),), ((1, -0.25),)))
TOLD = result_of(logprobs=LIKELY, cumulative_logprob=-2.0, metadata={})
PLAIN = result_of(metadata={})


def written(form: str, *results: Result) -> bytes:
    stream = io.BytesIO()
    WRITERS[form](results, stream, WriteOptions())
    return stream.getvalue()


def test_a_line_of_json_has_them_behind_the_counts() -> None:
    row = json.loads(written("jsonl", TOLD))
    assert list(row)[7:11] == ["num_output_tokens", "cumulative_logprob", "logprobs", "error"]
    assert row["cumulative_logprob"] == -2.0
    assert row["logprobs"] == {
        "token_ids": [845, 257],
        "tokens": [" very", " a"],
        "token_logprobs": [-0.5, -1.5],
        "top": [[[845, -0.5]], [[1, -0.25]]],
    }


def test_a_row_that_did_not_ask_has_no_such_fields() -> None:
    assert not {"cumulative_logprob", "logprobs"} & set(json.loads(written("jsonl", PLAIN)))


@pytest.mark.parametrize(("form", "comma"), [("csv", b","), ("tsv", b"\t")])
def test_a_table_of_text_has_the_sum_alone(form: str, comma: bytes) -> None:
    header, told, plain = written(form, TOLD, PLAIN).splitlines()
    column = header.split(comma).index(b"cumulative_logprob")
    assert b"logprobs" not in header.split(comma)
    assert [row.split(comma)[column] for row in (told, plain)] == [b"-2.0", b""]


def test_a_table_that_began_without_them_has_the_sum_among_the_rest() -> None:
    *_, told = written("tsv", PLAIN, TOLD).decode().splitlines()
    assert json.loads(told.split("\t")[-1]) == {"cumulative_logprob": -2.0}


def parquet(*results: Result) -> list[dict[str, Any]]:
    pq = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(written("parquet", *results))).to_pylist()
    return rows


def test_parquet_has_lists() -> None:
    told, plain = parquet(TOLD, PLAIN)
    assert (told["cumulative_logprob"], plain["cumulative_logprob"], plain["logprobs"]) == (-2.0, None, None)
    assert told["logprobs"] == {
        "token_ids": [845, 257],
        "tokens": [" very", " a"],
        "token_logprobs": [-0.5, -1.5],
        "top": [[{"token_id": 845, "logprob": -0.5}], [{"token_id": 1, "logprob": -0.25}]],
    }


def test_parquet_that_began_without_them_leaves_nothing_out() -> None:
    _, told = parquet(PLAIN, TOLD)
    assert json.loads(told["metadata"]) == {"cumulative_logprob": -2.0, "logprobs": LIKELY_AS_JSON}


LIKELY_AS_JSON = json.loads(json.dumps(LIKELY.to_dict()))
