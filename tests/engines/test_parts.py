"""The queue of a pool: how rows are cut into parts, and what happens to rows whose worker died."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchgen.engines.pool.parts import DEATHS_ALONE, Part, Parts
from batchgen.records import Sequence
from tests.support.rows import rows_of


def queue_of(num_rows: int, num_workers: int = 2, part_rows: int = 16, least_rows: int = 2) -> Parts:
    parts = Parts(num_workers, part_rows, least_rows)
    parts.add(rows_of([[4]] * num_rows))
    return parts


def sizes(parts: Parts) -> list[int]:
    found = []
    while part := parts.take(is_idle=False):
        found.append(len(part.rows))
    return found


def test_parts_become_smaller_towards_the_end() -> None:
    assert sizes(queue_of(100)) == [16, 16, 16, 13, 10, 8, 6, 4, 3, 2, 2, 2, 2]


def test_with_a_fixed_number_of_rows_only_the_last_part_is_smaller() -> None:
    assert sizes(queue_of(20, least_rows=16)) == [16, 4]


def test_the_longest_rows_go_first() -> None:
    parts = Parts(1, 4)
    parts.add(rows_of([[4], [4, 4, 4], [4, 4]]))
    part = parts.take(is_idle=True)
    assert part is not None
    assert [row.num_prompt_tokens for row in part.rows] == [3, 2, 1]


def test_more_is_wanted_below_a_part_for_each_worker() -> None:
    assert queue_of(31).wants_more
    assert not queue_of(32).wants_more


def test_suspects_are_for_idle_workers() -> None:
    parts = queue_of(0)
    parts.lose(rows_of([[4]] * 4))
    assert parts.take(is_idle=False) is None
    assert [len(part.rows) for _ in range(2) if (part := parts.take(is_idle=True))] == [2, 2]


def test_a_part_that_was_not_begun_comes_again_first() -> None:
    parts = queue_of(8)
    first = parts.take(is_idle=True)
    assert first is not None
    parts.put_back(first)
    assert parts.take(is_idle=True) == first


def test_a_suspect_that_was_not_begun_is_no_more_suspect_than_before() -> None:
    parts = queue_of(0)
    suspect = Part(tuple(rows_of([[4]])), is_suspect=True, deaths=1)
    parts.put_back(suspect)
    assert parts.take(is_idle=True) == suspect


@given(st.integers(1, 100), st.sets(st.integers(0, 99)))
def test_splitting_finds_exactly_the_rows_that_kill(num_rows: int, killers: set[int]) -> None:
    parts = queue_of(0)
    finished: list[Sequence] = []
    failed = parts.lose(rows_of([[4]] * num_rows))
    deaths = 1
    while part := parts.take(is_idle=True):
        if any(row.request.index in killers for row in part.rows):
            failed += parts.lose(list(part.rows), part.deaths)
            deaths += 1
        else:
            finished += part.rows
    killers = {index for index in killers if index < num_rows}
    assert {row.request.index for row in failed} == killers
    assert sorted(row.request.index for row in [*finished, *failed]) == list(range(num_rows))
    assert deaths <= 1 + len(killers) * (num_rows.bit_length() + DEATHS_ALONE)
