"""How many rows fit into slots with the running ones, and how much they are measured to take."""

from __future__ import annotations

from typing import Any

import pytest

from batchgen.engines.continuous.memory import SlotMemory
from batchgen.engines.continuous.room import SlotRoom
from batchgen.planning.backoff import Backoff
from batchgen.planning.memory import BatchLimits
from batchgen.records import SamplingParams
from tests.support.engines import FOOTPRINT
from tests.support.meters import FakeMeter

ROWS = 8
SLOTS = [(20, SamplingParams(max_new_tokens=4))] * ROWS


def slots_bytes(num_rows: int, prefix_tokens: int = 0) -> int:
    return SlotMemory(FOOTPRINT).of_rows(SLOTS[:num_rows], prefix_tokens).total


def slots_of(budget_bytes: int, num_rows: int | None = None, **options: Any) -> SlotRoom:
    return SlotRoom(Backoff(BatchLimits(SlotMemory(FOOTPRINT), budget_bytes, 64, num_rows), **options))


@pytest.mark.parametrize("running", [0, 2])
def test_rows_join_those_in_slots_while_they_fit(running: int) -> None:
    assert slots_of(slots_bytes(5)).beside(SLOTS[:running], SLOTS[running:], 0, 0) == 5 - running
    assert slots_of(slots_bytes(5) - 1).beside(SLOTS[:running], SLOTS[running:], 0, 0) == 4 - running


def test_a_shared_prefix_takes_its_part_of_the_room() -> None:
    room = slots_of(slots_bytes(5))
    assert room.beside([], SLOTS, 100, 0) < 5
    assert slots_of(slots_bytes(5, 100)).beside([], SLOTS, 100, 0) == 5


def test_what_the_cache_holds_already_is_not_needed_again() -> None:
    held_bytes = FOOTPRINT.cache_bytes(1, 1000)
    budget = slots_bytes(5) - held_bytes
    assert slots_of(budget).beside([], SLOTS, 0, held_bytes) == 5


def test_a_fixed_number_of_slots_asks_no_budget_until_memory_runs_out() -> None:
    room = slots_of(slots_bytes(2), num_rows=ROWS)
    assert room.beside([], SLOTS, 0, 0) == ROWS
    room.halve(ROWS, ROWS // 2)
    assert room.beside([], SLOTS, 0, 0) == 2


def test_what_the_slots_take_is_predicted_and_measured() -> None:
    room = slots_of(2 * slots_bytes(8), meter=FakeMeter([100, 300, 200]))
    for num_rows in (3, 8, 5):
        room.watch(SLOTS[:num_rows], 0)
    room.measure()
    assert (room.backoff.predicted_bytes, room.backoff.measured_bytes) == (slots_bytes(8), 300)


@pytest.mark.parametrize("times", [2, 1])
def test_slots_keep_freed_blocks_where_memory_is_plenty(times: int) -> None:
    told: list[bool] = []
    slots_of(times * slots_bytes(8), reuse_blocks=told.append).watch(SLOTS[:8], 0)
    assert told == [times == 2]


def test_slots_that_take_more_than_predicted_leave_room_for_fewer() -> None:
    rows = [(800, SamplingParams())] * 64
    predicted = SlotMemory(FOOTPRINT).of_rows(rows).total
    room = slots_of(predicted, meter=FakeMeter([2 * predicted]))
    room.watch(rows, 0)
    room.measure()
    assert room.backoff.limits.budget_bytes == predicted // 2


def test_slots_that_were_never_filled_are_not_measured() -> None:
    room = slots_of(slots_bytes(1), meter=FakeMeter([300]))
    room.measure()
    assert room.backoff.measured_bytes is None
