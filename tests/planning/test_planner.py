from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import InputError
from batchgen.planning.batches import longest_first, make_limits, plan_batches, plan_prefills, step_work, windows
from batchgen.planning.memory import PREFILL_TOKENS, BatchLimits, estimate, largest_batch
from batchgen.records import Request, SamplingParams, Sequence
from tests.support.engines import FOOTPRINT, limits_of
from tests.support.rows import rows_of_lengths

PATIENT = 600.0  # seconds: no window closes before it is full, however busy the machine is
DEADLINE = 600.0  # seconds after which what never comes is a failure
LENGTHS = st.lists(st.integers(1, 200), max_size=40)
# From what holds not even one row to what holds them all.
BUDGETS = st.integers(0, 40).map(lambda rows: rows * needed_bytes(1, 100, SamplingParams()))


def needed_bytes(rows: int, columns: int, sampling: SamplingParams) -> int:
    return estimate(FOOTPRINT, rows, columns, sampling).total


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
    prefills = [list(itertools.islice(rows, size)) for size in plan_prefills(sorted(lengths, reverse=True))]
    assert sum(map(len, prefills)) == len(lengths)
    assert all(len(prefill) == 1 or len(prefill) * prefill[0] <= PREFILL_TOKENS for prefill in prefills)


def test_rows_that_would_be_mostly_pads_are_prefilled_apart() -> None:
    assert plan_prefills([200, 190, *[5] * 20]) == [2, 20]
    assert plan_prefills([9] * 20) == [20]


def test_the_longest_first_counts_what_a_row_has_made() -> None:
    first, second, third = rows = rows_of_lengths([5, 5, 6])
    first.output_ids = [1, 2]
    assert longest_first(rows) == [first, third, second]


@pytest.mark.parametrize(("has_slots", "most_rows"), [(False, 64), (True, 128)])
def test_slots_are_more_than_rows_of_a_batch(has_slots: bool, most_rows: int) -> None:
    limits = make_limits(FOOTPRINT, torch.device("cpu"), 1000, has_slots=has_slots)
    assert (limits.has_slots, limits.most_rows, limits.budget_bytes) == (has_slots, most_rows, 800)


# Windows.


@pytest.mark.parametrize(("most_rows", "num_rows", "first"), [(64, None, 16), (8, None, 8), (64, 3, 3), (64, 100, 100)])
def test_the_first_window_is_one_batch(most_rows: int, num_rows: int | None, first: int) -> None:
    assert limits_of(most_rows=most_rows, num_rows=num_rows).first_window == first


@pytest.mark.parametrize(("num_rows", "first"), [(None, 64), (3, 3)])
def test_the_first_window_fills_all_slots(num_rows: int | None, first: int) -> None:
    assert replace(limits_of(num_rows=num_rows), has_slots=True).first_window == first


@pytest.mark.parametrize(
    ("num_items", "sizes"),
    [(0, []), (1, [1]), (2, [2]), (3, [2, 1]), (6, [2, 4]), (14, [2, 4, 8]), (31, [2, 4, 8, 8, 8, 1])],
)
def test_windows_double_up_to_the_last(num_items: int, sizes: list[int]) -> None:
    assert [len(window) for window in windows(range(num_items), first=2, last=8, patience_s=PATIENT)] == sizes


@given(num_items=st.integers(0, 50), first=st.integers(1, 8), last=st.integers(1, 16))
def test_windows_keep_every_item_in_order(num_items: int, first: int, last: int) -> None:
    cut = list(windows(range(num_items), first, last, patience_s=PATIENT))
    assert list(itertools.chain(*cut)) == list(range(num_items))
    assert all(cut)


def test_windows_are_whole_batches_of_the_given_size() -> None:
    first = limits_of(num_rows=48).first_window
    sizes = [len(window) for window in windows(range(20_000), first, patience_s=PATIENT)]
    assert [size % 48 for size in sizes[:-1]] == [0] * (len(sizes) - 1)


def test_windows_do_not_shrink() -> None:
    first = limits_of(num_rows=5000).first_window
    sizes = [len(window) for window in windows(range(12_000), first, patience_s=PATIENT)]
    assert sizes == [5000, 5000, 2000]


def test_a_window_closes_when_its_items_are_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.planning.batches.HEAVIEST_WINDOW", 10)
    items = [1, 1, 20, 1, 4, 4, 4, 4, 30]
    cut = list(windows(items, first=4, patience_s=PATIENT, weigh=int))
    assert list(itertools.chain(*cut)) == items
    assert cut == [[1, 1, 20], [1, 4, 4, 4], [4, 30]]


def test_no_more_is_read_ahead_than_a_window_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.planning.batches.HEAVIEST_WINDOW", 10)
    num_read = itertools.count()
    items = (next(num_read) * 0 + 11 for _ in range(1000))
    for number, window in enumerate(windows(items, first=1, patience_s=PATIENT, weigh=int)):
        assert window == [11]
        if number == 5:
            break
    assert next(num_read) <= 10


def test_a_source_that_falls_silent_closes_its_window() -> None:
    more = threading.Event()

    def source() -> Iterator[str]:
        yield "at once"
        assert more.wait(DEADLINE)
        yield "later"

    cut = windows(source(), first=8, patience_s=0.01)
    assert next(cut) == ["at once"]
    more.set()
    assert list(cut) == [["later"]]


def test_a_busy_reader_gets_what_is_there_even_nothing() -> None:
    more = threading.Event()
    busy = False

    def source() -> Iterator[str]:
        yield "at once"
        assert more.wait(DEADLINE)
        yield "later"

    cut = windows(source(), first=1, patience_s=PATIENT, is_busy=lambda: busy)
    assert next(cut) == ["at once"]
    busy = True
    assert next(cut) == []
    more.set()
    busy = False
    assert list(cut) == [["later"]]


def test_a_source_that_is_always_late_loses_nothing() -> None:
    cut = list(windows(range(100), first=2, last=2, patience_s=0))
    assert list(itertools.chain(*cut)) == list(range(100))


@pytest.mark.parametrize("error", [InputError("gone"), KeyboardInterrupt(), RuntimeError("a bug")], ids=repr)
def test_an_error_of_the_source_comes_after_the_items_before_it(error: BaseException) -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise error

    cut = windows(source(), first=2, patience_s=PATIENT)
    assert (next(cut), next(cut)) == ([0, 1], [2])
    with pytest.raises(type(error)) as caught:
        next(cut)
    assert caught.value is error


def test_an_error_before_any_item_is_raised() -> None:
    def source() -> Iterator[int]:
        raise InputError("gone")
        yield

    with pytest.raises(InputError, match="gone"):
        next(windows(source(), first=2, patience_s=PATIENT))


def test_an_endless_source_is_read_at_most_a_window_ahead() -> None:
    taken: list[int] = []
    reader: list[threading.Thread] = []
    ahead = threading.Event()

    def source() -> Iterator[int]:
        reader.append(threading.current_thread())
        for number in itertools.count():
            taken.append(number)
            if number == 6:  # two delivered, four in the queue, one in hand
                ahead.set()
            yield number

    cut = windows(source(), first=2, last=4, patience_s=PATIENT)
    assert next(cut) == [0, 1]
    assert ahead.wait(DEADLINE)
    cut.close()
    reader[0].join(DEADLINE)
    assert taken == list(range(7))


def test_the_reading_thread_ends_with_its_reader() -> None:
    reader: list[threading.Thread] = []

    def source() -> Iterator[int]:
        reader.append(threading.current_thread())
        yield from itertools.count()

    for _ in windows(source(), first=2, last=4, patience_s=PATIENT):
        break
    reader[0].join(DEADLINE)
    assert not reader[0].is_alive()
