"""What the pipeline relies on in every engine: rows may be added at any time, each comes out once, and it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchgen import Model
from batchgen.engines import Engine, finish_all, make_engine
from batchgen.records import EngineOptions, Sequence
from tests.support.engines import FakeEngine
from tests.support.rows import encoded, ragged_prompts

MOST_STEPS = 1000  # more than any of these runs needs: an engine that never ends fails instead of hanging


@pytest.fixture(params=["reference", "continuous", "fake"])
def engine(request: pytest.FixtureRequest, tiny_models: dict[str, Model]) -> Engine:
    if request.param == "fake":
        return FakeEngine(first_window=4)
    return make_engine(tiny_models["gpt2"], EngineOptions(request.param, batch_size=4))


@pytest.fixture
def make_rows(tiny_models: dict[str, Model]) -> Callable[..., list[Sequence]]:
    def made(count: int = 9, seed: int = 0, **sampling: object) -> list[Sequence]:
        prompts = ragged_prompts(count, seed=seed, longest=12)
        return encoded(prompts, tiny_models["gpt2"], **{"max_new_tokens": 5, **sampling})

    return made


MakeRows = Callable[..., list[Sequence]]


def finish(engine: Engine) -> list[Sequence]:
    finished: list[Sequence] = []
    for _ in range(MOST_STEPS):
        if engine.is_idle:
            return finished
        finished += engine.step()
    raise AssertionError("the engine does not end")


def ids_of(rows: list[Sequence]) -> list[int]:
    return sorted(map(id, rows))


def test_an_engine_with_nothing_in_hand_wants_rows_and_steps_to_no_effect(engine: Engine) -> None:
    for _ in range(2):
        assert engine.is_idle
        assert engine.wants_rows > 0
        assert engine.step() == []
    engine.add([])
    assert engine.is_idle
    assert (engine.stats.new_tokens, engine.stats.batches) == (0, 0)


def test_each_row_comes_out_once_and_finished(engine: Engine, make_rows: MakeRows) -> None:
    rows = make_rows()
    engine.add(rows)
    assert not engine.is_idle
    finished = finish(engine)
    assert ids_of(finished) == ids_of(rows)
    assert all(row.is_finished and row.output_ids and row.batch_index is not None for row in rows)
    assert engine.stats.new_tokens == sum(row.num_output_tokens for row in rows)
    assert engine.stats.batches > 0


def test_every_step_of_a_busy_engine_makes_tokens(engine: Engine, make_rows: MakeRows) -> None:
    engine.add(make_rows())
    while not engine.is_idle:
        before = engine.stats.new_tokens
        engine.step()
        assert engine.stats.new_tokens > before


def test_a_row_comes_out_in_the_step_that_finishes_it(engine: Engine, make_rows: MakeRows) -> None:
    rows = [*make_rows(3, max_new_tokens=2), *make_rows(3, seed=1, max_new_tokens=6)]
    engine.add(rows)
    out: set[int] = set()
    while not engine.is_idle:
        out.update(map(id, engine.step()))
        assert out == {id(row) for row in rows if row.is_finished}


def test_rows_may_come_at_any_time(engine: Engine, make_rows: MakeRows) -> None:
    waiting = [make_rows(3, seed=seed) for seed in range(6)]
    rows = [row for window in waiting for row in window]
    finished: list[Sequence] = []
    while waiting:
        engine.add(waiting.pop())  # whether it wants them or not
        finished += engine.step()
    finished += finish(engine)
    assert ids_of(finished) == ids_of(rows)


def test_rows_that_are_given_where_they_are_wanted_all_come_out(engine: Engine, make_rows: MakeRows) -> None:
    waiting = make_rows(23)
    rows, finished = list(waiting), []
    for _ in range(MOST_STEPS):
        assert engine.wants_rows >= 0
        if wanted := engine.wants_rows:
            engine.add(waiting[:wanted])
            del waiting[:wanted]
        if engine.is_idle:
            break
        finished += engine.step()
    assert waiting == []
    assert ids_of(finished) == ids_of(rows)


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_an_engine_that_is_done_wants_rows_again(engine: Engine, make_rows: MakeRows, max_new_tokens: int) -> None:
    for seed in range(3):
        rows = make_rows(2, seed, max_new_tokens=max_new_tokens)
        assert ids_of(list(finish_all(engine, rows))) == ids_of(rows)
        assert engine.wants_rows > 0


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_an_engine_that_is_closed_has_nothing_in_hand(engine: Engine, make_rows: MakeRows, num_steps: int) -> None:
    rows = make_rows(20)
    engine.add(rows)
    for _ in range(num_steps):
        engine.step()
    for _ in range(2):
        engine.close()
        assert engine.is_idle
    assert engine.step() == []


def test_an_engine_that_was_closed_in_the_middle_starts_afresh(engine: Engine, make_rows: MakeRows) -> None:
    engine.add(make_rows(20))
    engine.step()
    engine.close()
    wanted, rows = make_rows(), make_rows()
    list(finish_all(engine, rows))
    assert all(row.is_finished and row.error is None for row in rows)
    engine.close()
    list(finish_all(engine, wanted))
    assert [row.output_ids for row in rows] == [row.output_ids for row in wanted]
