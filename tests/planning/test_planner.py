from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.engines.choice import KINDS
from batchgen.engines.continuous.memory import PREFILL_TOKENS, prefill_rows
from batchgen.engines.reference.memory import BatchMemory
from batchgen.errors import UsageError
from batchgen.planning.batches import longest_first, plan_batches, plan_prefills, step_work
from batchgen.planning.memory import BatchLimits, largest_batch
from batchgen.records import Request, SamplingParams, Sequence
from tests.support.engines import FOOTPRINT, limits_of
from tests.support.rows import rows_of_lengths

LENGTHS = st.lists(st.integers(1, 200), max_size=40)
# From too small for one row to enough for all of them.
BUDGETS = st.integers(0, 40).map(lambda rows: rows * needed_bytes(1, 100, SamplingParams()))


def needed_bytes(rows: int, columns: int, sampling: SamplingParams) -> int:
    return BatchMemory(FOOTPRINT).estimate(rows, columns, sampling).total


def plan_lengths(lengths: list[int], limits: BatchLimits, **sampling: Any) -> list[list[int]]:
    return [
        [row.num_prompt_tokens for row in batch]
        for batch in plan_batches(rows_of_lengths(lengths, SamplingParams(**sampling)), limits)
    ]


def indices(plan: list[list[Sequence]]) -> list[list[int]]:
    return [[row.request.index for row in batch] for batch in plan]


def fits(batch: list[int], limits: BatchLimits, sampling: SamplingParams) -> bool:
    return len(batch) <= limits.most_rows and needed_bytes(len(batch), max(batch), sampling) <= limits.budget_bytes


def cost_of(plan: list[list[int]], max_new_tokens: int) -> float:
    return sum(len(batch) * max(batch) + step_work(len(batch)) * max_new_tokens for batch in plan)


def every_cut(rows: list[int]) -> Iterator[list[list[int]]]:
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        bounds = [0, *(place for place, cut in enumerate(cuts, 1) if cut), len(rows)]
        yield [rows[start:end] for start, end in itertools.pairwise(bounds)]


@pytest.mark.parametrize("num_rows", [None, 4])
def test_no_rows_are_no_batches(num_rows: int | None) -> None:
    assert plan_batches([], limits_of(num_rows=num_rows)) == []


@given(lengths=LENGTHS.filter(bool), budget_bytes=BUDGETS, num_rows=st.none() | st.integers(1, 9))
def test_every_row_is_in_one_batch(lengths: list[int], budget_bytes: int, num_rows: int | None) -> None:
    plan = indices(plan_batches(rows_of_lengths(lengths), limits_of(budget_bytes, num_rows=num_rows)))
    assert sorted(itertools.chain(*plan)) == list(range(len(lengths)))
    assert all(plan)


@given(lengths=LENGTHS.filter(bool), budget_bytes=BUDGETS, num_rows=st.none() | st.integers(1, 9))
def test_the_longest_rows_come_first(lengths: list[int], budget_bytes: int, num_rows: int | None) -> None:
    plan = plan_lengths(lengths, limits_of(budget_bytes, num_rows=num_rows))
    assert list(itertools.chain(*plan)) == sorted(lengths, reverse=True)


def test_rows_of_one_length_keep_their_order() -> None:
    assert indices(plan_batches(rows_of_lengths([5, 9, 5, 9]), limits_of(num_rows=2))) == [[1, 3], [0, 2]]


@given(lengths=LENGTHS.filter(bool), budget_bytes=BUDGETS, seed=st.integers(0, 9))
def test_a_plan_depends_on_the_rows_alone(lengths: list[int], budget_bytes: int, seed: int) -> None:
    rows, limits = rows_of_lengths(lengths), limits_of(budget_bytes)
    shuffled = random.Random(seed).sample(rows, len(rows))
    plan = indices(plan_batches(rows, limits))
    assert plan == indices(plan_batches(rows, limits))
    assert plan == indices(plan_batches(shuffled, limits))


def test_samples_of_one_row_keep_their_order() -> None:
    request = Request(0, "0", "", SamplingParams(num_samples=3, temperature=1.0))
    rows = [Sequence(request, sample, [7, 7]) for sample in (2, 0, 1)]
    [batch] = plan_batches(rows, limits_of())
    assert [row.sample_index for row in batch] == [0, 1, 2]


@given(lengths=LENGTHS.filter(bool), budget_bytes=BUDGETS, most_rows=st.integers(1, 20))
def test_a_batch_fits_or_is_a_single_row(lengths: list[int], budget_bytes: int, most_rows: int) -> None:
    limits = limits_of(budget_bytes, most_rows=most_rows)
    for batch in plan_lengths(lengths, limits):
        assert len(batch) == 1 or fits(batch, limits, SamplingParams())


def test_a_batch_fits_where_a_shorter_row_asks_for_more_new_tokens() -> None:
    short, long = SamplingParams(max_new_tokens=1), SamplingParams(max_new_tokens=10_000)
    rows = [Sequence(Request(0, "0", "", short), 0, [7] * 9), Sequence(Request(1, "1", "", long), 0, [7] * 8)]
    limits = limits_of(budget_bytes=needed_bytes(1, 9, long))
    assert indices(plan_batches(rows, limits)) == [[0], [1]]


@pytest.mark.parametrize("num_rows", [1, 3, 7, 10, 99])
def test_a_given_batch_size_holds_for_all_but_the_last(num_rows: int) -> None:
    sizes = [len(batch) for batch in plan_lengths(list(range(1, 11)), limits_of(num_rows=num_rows))]
    assert sizes[:-1] == [num_rows] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= num_rows
    assert sum(sizes) == 10


def test_a_given_batch_size_overrides_the_limits() -> None:
    assert [len(batch) for batch in plan_lengths([5] * 8, limits_of(0, num_rows=8, most_rows=2))] == [8]


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=9),
    budget_bytes=BUDGETS,
    most_rows=st.integers(1, 9),
    max_new_tokens=st.integers(1, 20),
)
def test_no_other_cut_is_cheaper(lengths: list[int], budget_bytes: int, most_rows: int, max_new_tokens: int) -> None:
    limits, sampling = limits_of(budget_bytes, most_rows=most_rows), SamplingParams(max_new_tokens=max_new_tokens)
    possible = [
        plan
        for plan in every_cut(sorted(lengths, reverse=True))
        if all(len(batch) == 1 or fits(batch, limits, sampling) for batch in plan)
    ]
    plan = plan_lengths(lengths, limits, max_new_tokens=max_new_tokens)
    assert cost_of(plan, max_new_tokens) == min(cost_of(other, max_new_tokens) for other in possible)


def test_skewed_lengths_are_split() -> None:
    assert plan_lengths([500, 500, *[5] * 20], limits_of(), max_new_tokens=4) == [[500, 500], [5] * 20]


def test_like_lengths_are_not_split() -> None:
    assert plan_lengths([50, 49] * 16, limits_of(), max_new_tokens=50) == [[50] * 16 + [49] * 16]


def test_rows_of_one_length_are_not_split() -> None:
    assert plan_lengths([50] * 32, limits_of(), max_new_tokens=50) == [[50] * 32]


def test_a_row_beyond_the_budget_is_tried_alone() -> None:
    assert plan_lengths([100, 90], limits_of(budget_bytes=0)) == [[100], [90]]


@given(budget_bytes=BUDGETS, columns=st.integers(1, 200))
def test_one_row_more_than_the_largest_batch_does_not_fit(budget_bytes: int, columns: int) -> None:
    rows = largest_batch(limits_of(budget_bytes), columns, [SamplingParams()], 64)
    assert rows == 1 or needed_bytes(rows, columns, SamplingParams()) <= budget_bytes
    assert rows == 64 or needed_bytes(rows + 1, columns, SamplingParams()) > budget_bytes


# Prefills, for slots.


@given(lengths=st.lists(st.integers(1, 3000), max_size=60))
def test_a_prefill_keeps_to_its_bound_or_is_a_single_row(lengths: list[int]) -> None:
    rows = iter(sorted(lengths, reverse=True))
    prefills = [
        list(itertools.islice(rows, size)) for size in plan_prefills(sorted(lengths, reverse=True), prefill_rows)
    ]
    assert sum(map(len, prefills)) == len(lengths)
    assert all(len(prefill) == 1 or len(prefill) * prefill[0] <= PREFILL_TOKENS for prefill in prefills)


def test_rows_that_would_be_mostly_pads_are_prefilled_apart() -> None:
    assert plan_prefills([200, 190, *[5] * 20], prefill_rows) == [2, 20]
    assert plan_prefills([9] * 20, prefill_rows) == [20]


def test_the_longest_first_counts_what_a_row_has_made() -> None:
    first, second, third = rows = rows_of_lengths([5, 5, 6])
    first.output_ids = [1, 2]
    assert longest_first(rows) == [first, third, second]


@pytest.mark.parametrize(("name", "most_rows"), [("reference", 64), ("continuous", 128)])
def test_slots_are_more_than_rows_of_a_batch(name: str, most_rows: int) -> None:
    limits = KINDS[name].limits(FOOTPRINT, "cpu", 1000)
    assert (limits.most_rows, limits.budget_bytes) == (most_rows, 800)


@pytest.mark.parametrize("num_rows", [0, -1, 2.5])
def test_a_number_of_rows_that_is_none_is_refused(num_rows: float) -> None:
    with pytest.raises(UsageError, match=f"batch_size {num_rows}: give auto or a number of at least 1"):
        KINDS["reference"].limits(FOOTPRINT, "cpu", 1000, num_rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "num_rows", "first"),
    [("reference", None, 16), ("reference", 5, 5), ("continuous", None, 128), ("continuous", 5, 5)],
)
def test_the_first_window_is_a_small_batch_or_all_slots(name: str, num_rows: int | None, first: int) -> None:
    kind = KINDS[name]
    assert kind.first_window(kind.limits(FOOTPRINT, "cpu", 1000, num_rows)) == first
