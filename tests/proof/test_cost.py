"""What `verify --quantize` reports about 8-bit integers: equal tokens, divergence, perplexity; and exit code 0."""

from __future__ import annotations

import json
import math
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from batchgen import Model
from batchgen.engines.int8.support import why_no_int8
from batchgen.proof.verify import Controls, ErrorBound, Oracle, RowCheck, VerifyReport, measure_cost
from batchgen.records import SamplingParams, Sequence
from batchgen.render.verify import print_report
from tests.support.command import invoke
from tests.support.rows import RAIN, rows_of

needs_int8 = pytest.mark.skipif(why_no_int8("cpu") is not None, reason="this processor multiplies no 8-bit integers")
HALF, EIGHTH = math.log(0.5), math.log(0.125)
PROMPTS = [word for prompt in RAIN for word in ("-p", prompt)]
VERIFY = ("verify", "--model", "bundled", "--quantize", "int8", "--max-new-tokens", "4", *PROMPTS)


def oracle_of(logits: list[float]) -> Any:
    """Return the same logits for every context."""
    return SimpleNamespace(logits=lambda token_ids, last: torch.tensor([logits] * last))


def answered(prompt: list[int], output_ids: list[int]) -> Sequence:
    [row] = rows_of([prompt], SamplingParams())
    row.output_ids = output_ids
    return row


def test_the_cost_of_a_model_that_is_surer_than_it_should_be() -> None:
    plain, quantised = oracle_of([HALF, HALF]), oracle_of([EIGHTH, math.log(0.875)])
    cost = measure_cost("int8", plain, quantised, [answered([0, 1, 0], [1, 1])], [answered([0, 1, 0], [1, 0])])
    assert (cost.equal_share, cost.equal_rows, cost.num_positions) == (0.5, 0, 4)
    assert cost.rows[0].first_difference == 1
    assert cost.divergence == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(0.5 / 0.875))
    assert cost.mean_difference == pytest.approx((math.log(4) + math.log(0.875 / 0.5)) / 2)
    assert cost.perplexity == pytest.approx(2)
    assert cost.quantized_perplexity == pytest.approx(math.sqrt(8 / 0.875))


@pytest.mark.parametrize(
    ("own", "other", "equal", "first"), [([1], [1], 1, None), ([1, 2], [1], 1, 1), ([], [], 0, None)]
)
def test_where_rows_part(own: list[int], other: list[int], equal: int, first: int | None) -> None:
    same = oracle_of([0.0, 0.0])
    [row] = measure_cost("int8", same, same, [answered([0], own)], [answered([0], other)]).rows
    assert (row.num_equal, row.first_difference) == (equal, first)


def test_rows_of_one_token_have_no_perplexity() -> None:
    same = oracle_of([0.0, 0.0])
    cost = measure_cost("int8", same, same, [answered([0], [1])], [answered([0], [1])])
    assert cost.perplexity is None
    assert cost.perplexity_change is None
    assert (cost.equal_share, cost.divergence) == (1.0, 0.0)


@needs_int8
def test_verify_says_what_int8_costs_and_ends_well() -> None:
    result = invoke(*VERIFY, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    cost = report["quantization"]
    assert cost["quantize"] == "int8"
    assert len(cost["rows"]) == len(report["rows"]) == 3
    assert 0 < cost["divergence"] < 0.05
    assert cost["quantized_perplexity"] == pytest.approx(cost["perplexity"], rel=0.05)


def test_the_cost_stands_on_the_screen() -> None:
    plain, quantised = oracle_of([HALF, HALF]), oracle_of([EIGHTH, math.log(0.875)])
    cost = measure_cost("int8", plain, quantised, [answered([0, 1, 0], [1, 1])], [answered([0, 1, 0], [1, 0])])
    rows, controls = [RowCheck("0", 0, "p", "identical", 2, differences=(1e-6, 1e-6))], Controls(0, 0, "absolute", ())
    bound = ErrorBound(1e-5, 1e-4)
    report = VerifyReport("bundled", "continuous", "cpu", "float32", 1, bound, controls, tuple(rows), cost=cost)
    print_report(Console(file=(written := StringIO()), width=80), report)
    assert "What int8 costs, against float32" in written.getvalue()
    assert "int8 and float32" in written.getvalue().splitlines()[0]


@needs_int8
def test_logits_of_an_oracle_in_int8_are_not_those_of_float32(bundled: Model) -> None:
    from batchgen.engines import quantized
    from batchgen.records import EngineOptions

    plain, coarse = Oracle(bundled), Oracle(quantized(bundled, EngineOptions(quantize="int8")), "int8")
    one, other = plain.logits([40, 765, 284], 3), coarse.logits([40, 765, 284], 3)
    assert 0 < (one - other).abs().max() < 0.1 * one.abs().max()
