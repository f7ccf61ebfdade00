from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.prefixes import LEAST_PREFIX, LEAST_SAVED, shared_prefixes, twins
from batchgen.records import SamplingParams
from tests.support.rows import rows_of

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=1.0)


def groups_of(token_ids: list[list[int]]) -> list[tuple[int, list[int]]]:
    return [(n, sorted(row.request.index for row in group)) for n, group in shared_prefixes(rows_of(token_ids))]


def test_rows_that_begin_alike_are_one_group() -> None:
    preamble = list(range(40))
    token_ids = [[*preamble, 100 + i] for i in range(6)]
    assert groups_of([*token_ids, [7], [8, 9]]) == [(32, [0, 1, 2, 3, 4, 5]), (0, [6, 7])]


def test_a_row_that_is_the_prefix_keeps_a_token_of_its_own() -> None:
    preamble = list(range(64))
    assert groups_of([preamble] * 5) == [(32, [0, 1, 2, 3, 4])]
    assert groups_of([preamble, *([*preamble, 50 + i] for i in range(9))]) == [(64, list(range(1, 10))), (0, [0])]


def test_two_preambles_are_two_groups() -> None:
    token_ids = [[start + i for i in range(50)] + [row] for start in (0, 1000) for row in range(5)]
    random.Random(0).shuffle(token_ids)
    assert [(n, len(group)) for n, group in groups_of(token_ids)] == [(32, 5), (32, 5)]


def test_an_odd_row_that_shares_a_little_costs_the_others_nothing() -> None:
    """It is sorted just before rows that share much more with each other."""
    token_ids = [[*range(40), 0], *([*range(300), 1000 + i] for i in range(20))]
    assert groups_of(token_ids) == [(288, list(range(1, 21))), (0, [0])]


def test_rows_on_both_sides_of_a_larger_prefix_share_the_smaller_one() -> None:
    few = [[*range(100), 5, i] for i in range(5)] + [[*range(100), 5000, i] for i in range(5)]
    many = [[*range(300), 1000 + i] for i in range(10)]
    assert groups_of([*few, *many]) == [(288, list(range(10, 20))), (96, list(range(10)))]


def test_prompts_that_each_go_on_from_the_last_are_grouped_at_once() -> None:
    groups = groups_of([list(range(length)) for length in range(1, 2001)])
    assert sorted(i for _, group in groups for i in group) == list(range(2000))
    assert sum(n * (len(group) - 1) for n, group in groups) > 2000 * 2000 / 4  # half as many tokens in total


def test_a_short_prefix_and_few_rows_are_not_worth_it() -> None:
    assert groups_of([[*range(LEAST_PREFIX - 1), 100 + i] for i in range(90)])[0][0] == 0
    assert groups_of([[*range(100), 100 + i] for i in range(2)]) == [(0, [0, 1])]


def test_no_rows_are_no_groups() -> None:
    assert groups_of([]) == []
    assert twins([]) == []


FEW_TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)
PREAMBLES = st.sampled_from([[], [5] * 40, [5] * 80, [6] * 70, [6] * 35])
ROWS = st.lists(st.tuples(PREAMBLES, FEW_TOKENS).map(lambda parts: parts[0] + parts[1]), max_size=30)


@given(ROWS)
def test_every_row_is_in_one_group_and_begins_with_its_prefix(token_ids: list[list[int]]) -> None:
    groups = groups_of(token_ids)
    assert sorted(i for _, group in groups for i in group) == list(range(len(token_ids)))
    for num_tokens, group in groups:
        assert len({tuple(token_ids[i][:num_tokens]) for i in group}) == 1
        assert num_tokens == 0 or num_tokens * (len(group) - 1) >= LEAST_SAVED
        assert num_tokens % PAGE == 0
        assert all(len(token_ids[i]) > num_tokens for i in group)


def test_greedy_rows_with_the_same_tokens_are_twins_whatever_their_seeds() -> None:
    rows = rows_of([[1, 2], [1], [1, 2]]) + rows_of([[1, 2]], SamplingParams(seed=9))
    assert [[row.input_ids for row in group] for group in twins(rows)] == [[[1, 2]] * 3, [[1]]]
    assert twins(rows)[0][0] is rows[0]


def test_other_options_and_sampled_rows_are_no_twins() -> None:
    rows = [
        *rows_of([[1, 2]] * 2, SAMPLED),
        *rows_of([[1, 2]]),
        *rows_of([[1, 2]], SamplingParams(max_new_tokens=7)),
        *rows_of([[1, 2]], SamplingParams(stop=("x",))),
    ]
    assert [len(group) for group in twins(rows)] == [1] * 5
