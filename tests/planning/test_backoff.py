"""Running out of memory loses nothing: all rows come out, retries are few, and the failed batch's tensors are freed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from batchgen.engines import finish_all, make_engine
from batchgen.engines.reference.engine import ReferenceEngine
from batchgen.engines.reference.memory import BatchMemory
from batchgen.engines.reference.queue import BatchQueue
from batchgen.engines.sampling.sampler import Sampler
from batchgen.errors import is_out_of_memory
from batchgen.model import Model
from batchgen.model.padding import encode
from batchgen.pipeline import Pipeline
from batchgen.planning.backoff import Backoff
from batchgen.planning.batches import plan_batches
from batchgen.planning.memory import PLENTY_SHARE, BatchLimits, batch_bytes, batch_estimate
from batchgen.records import EngineOptions, Result, SamplingParams, Sequence
from tests.support.engines import FOOTPRINT, limits_of
from tests.support.meters import FakeMeter
from tests.support.rows import requests_of, rows_of_lengths

ROWS = 8
KINDS: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError,
]
each_kind = pytest.mark.parametrize("make_error", KINDS, ids=["torch", "allocator", "python"])


def short_rows(lengths: list[int]) -> list[Sequence]:
    return rows_of_lengths(lengths, SamplingParams(max_new_tokens=4))


class Runner:
    """Finishes rows, unless `refuses` says that there are too many; keeps weak references to what it allocated."""

    def __init__(self, make_error: Callable[[], Exception], refuses: Callable[[list[Sequence]], bool]) -> None:
        self.make_error = make_error
        self.refuses = refuses
        self.tried: list[int] = []
        self.failures = 0
        self.held: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, rows: list[Sequence]) -> None:
        assert not any(reference() is not None for reference in self.held), "an earlier batch's tensors are alive"
        self.tried.append(len(rows))
        activations = torch.zeros(len(rows), 8)
        self.held.append(weakref.ref(activations))
        for row in rows:
            row.output_ids.append(1)
        if self.refuses(rows):
            self.failures += 1
            raise self.make_error()
        for row in rows:
            row.finish_reason = "length"


def run_all(backoff: Backoff, batches: list[list[Sequence]], runner: Runner) -> list[Sequence]:
    """Return all rows as they come out of a queue whose batches the runner runs."""
    queue = BatchQueue(backoff)
    queue.add(batches)
    finished: list[Sequence] = []
    while queue:
        rows = queue.take()
        if not rows[0].is_finished and not runs(rows, runner):
            queue.give_way(rows)
        elif rows[0].error is None:
            queue.done()
        finished += [row for row in rows if row.is_finished]
    return finished


def runs(rows: list[Sequence], runner: Callable[[list[Sequence]], None]) -> bool:
    try:
        runner(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


@each_kind
@pytest.mark.parametrize("at", [0, 2, 4], ids=["first", "middle", "last"])
def test_only_the_batch_that_failed_is_halved(make_error: Callable[[], Exception], at: int) -> None:
    batches = [short_rows([5] * ROWS) for _ in range(5)]
    runner = Runner(make_error, lambda rows: rows[0] is batches[at][0] and len(rows) > 2)
    finished = run_all(Backoff(limits_of()), batches, runner)
    assert sorted(map(id, finished)) == sorted(id(row) for batch in batches for row in batch)
    assert all(row.finish_reason == "length" and len(row.output_ids) == 1 for row in finished)
    assert runner.tried[:at] == [ROWS] * at
    assert runner.failures == 2 <= math.log2(ROWS) + 1


@each_kind
@pytest.mark.parametrize("place", [0, 3, ROWS - 1])
def test_a_row_that_fits_nowhere_fails_alone(make_error: Callable[[], Exception], place: int) -> None:
    rows = short_rows([5] * ROWS)
    runner = Runner(make_error, lambda part: rows[place] in part)
    finished = run_all(Backoff(limits_of()), [rows], runner)
    assert len(finished) == ROWS
    assert [row for row in finished if row.finish_reason == "error"] == [rows[place]]
    assert runner.failures <= math.log2(ROWS) + 1
    assert rows[place].output_ids == []
    assert rows[place].padded_length is None
    assert "this row alone (5 prompt + 4 new tokens) needs about" in (rows[place].error or "")


def test_the_ceiling_holds_for_the_rest_of_the_run() -> None:
    runner = Runner(MemoryError, lambda rows: len(rows) > 2)
    backoff = Backoff(limits_of())
    run_all(backoff, [short_rows([5] * ROWS) for _ in range(3)], runner)
    assert runner.tried == [8, 4, 2, 2, 2, 2] + [2] * 8
    assert [len(batch) for batch in plan_batches(short_rows([5] * ROWS), backoff.limits)] == [2] * 4


def rows_of_long_answers(num_rows: int = ROWS) -> list[Sequence]:
    """Return rows whose memory is that of a growing cache."""
    return rows_of_lengths([50] * num_rows, SamplingParams(max_new_tokens=800))


def limits_that_keep_blocks(budget_bytes: int = 1 << 50) -> BatchLimits:
    return replace(limits_of(budget_bytes), plenty_memory=BatchMemory(FOOTPRINT, keeps_blocks=True))


def test_the_ceiling_is_what_rows_need_not_what_they_take_while_memory_is_plentiful() -> None:
    runner, lines = Runner(MemoryError, lambda rows: len(rows) > 20), list[str]()
    batches = [rows_of_long_answers(32) for _ in range(2)]
    run_all(Backoff(limits_that_keep_blocks(), say=lines.append), batches, runner)
    assert runner.tried == [32, 16, 16, 16, 16]
    assert [line.split(": ")[1] for line in lines] == ["continuing with 16 at a time"]


def test_blocks_are_kept_if_rows_need_little_although_they_then_take_more() -> None:
    rows = rows_of_long_answers()
    needed, taken = (batch_bytes(limits, rows) for limits in (limits_of(), limits_that_keep_blocks()))
    limits, kept = limits_that_keep_blocks(int((needed + taken) / 2 / PLENTY_SHARE)), list[bool]()
    backoff = Backoff(limits, reuse_blocks=kept.append)
    queue = BatchQueue(backoff)
    queue.add([rows])
    queue.take()
    backoff.begin_steps()
    assert kept == [False, True]
    queue.done()
    assert backoff.predicted_bytes == taken


def test_rows_are_compared_with_what_was_expected_when_they_began() -> None:
    """The blocks that they leave behind make memory less plentiful."""
    rows = rows_of_long_answers()
    limits, lines = limits_that_keep_blocks(), list[str]()
    taken = batch_bytes(limits, rows)
    budgets = iter([1 << 50] * 3)
    backoff = Backoff(limits, budget=lambda: next(budgets, taken), meter=FakeMeter([taken]), say=lines.append)
    queue = BatchQueue(backoff)
    queue.add([rows])
    queue.take()
    queue.done()
    backoff.end()
    assert (backoff.predicted_bytes, lines) == (taken, [])


def test_the_ceiling_is_one_of_bytes() -> None:
    runner = Runner(MemoryError, lambda rows: len(rows) * len(rows[0].input_ids) > 2000)
    backoff = Backoff(limits_of())
    run_all(backoff, [short_rows([1000] * 4), short_rows([2] * 4)], runner)
    assert runner.tried == [4, 2, 2, 4]


def test_the_ceiling_holds_for_a_fixed_batch_size_too() -> None:
    runner = Runner(MemoryError, lambda rows: len(rows) > 4)
    run_all(Backoff(limits_of(num_rows=8)), [short_rows([5] * 8), short_rows([5] * 8)], runner)
    assert runner.tried == [8, 4, 4, 4, 4]


def test_rows_finished_before_the_failure_stay() -> None:
    rows = short_rows([5] * 4)

    def attempt(part: list[Sequence]) -> None:
        for row in part:
            row.output_ids.append(1)
        part[0].finish_reason = "stop"
        if len(part) > 2:
            raise MemoryError
        for row in part:
            row.finish_reason = row.finish_reason or "length"

    queue = BatchQueue(Backoff(limits_of()))
    queue.add([rows])
    assert not runs(queue.take(), attempt)
    assert queue.give_way(rows) == 3  # tokens that are generated again
    assert [queue.take(), queue.take()] == [[rows[1], rows[2]], [rows[3]]]
    assert rows[0].output_ids == [1]


def test_each_failure_is_one_line() -> None:
    lines: list[str] = []
    rows = short_rows([5, 5])
    run_all(Backoff(limits_of(), say=lines.append), [rows], Runner(MemoryError, lambda part: rows[1] in part))
    assert lines[0] == "out of memory with 2 rows of 5 columns: continuing with 1 at a time"
    assert lines[1].startswith("out of memory with a single row (5 prompt + 4 new tokens): it needs about ")
    assert len(lines) == 2


def test_other_errors_are_not_ours() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        run_all(
            Backoff(limits_of()),
            [short_rows([5] * 4)],
            Runner(lambda: RuntimeError("shape mismatch"), lambda _: True),
        )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_has_many_names(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("expected scalar type"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_a_batch_gives_way_before_it_fails_where_memory_has_become_less() -> None:
    rows = short_rows([50] * ROWS)
    runner = Runner(MemoryError, lambda _: False)
    half = batch_bytes(limits_of(), rows[: ROWS // 2])
    run_all(Backoff(limits_of(), budget=lambda: half), [rows], runner)
    assert runner.tried == [4, 4]


def test_a_row_that_would_get_the_process_killed_is_not_tried() -> None:
    rows = short_rows([900, 5])
    runner = Runner(MemoryError, lambda _: False)
    wall = batch_estimate(limits_of(), rows[1:]).tensors
    run_all(Backoff(limits_of(), budget=lambda: 0, wall=lambda: wall), [rows], runner)
    assert runner.tried == [1]
    assert [row.finish_reason for row in rows] == ["error", "length"]


def test_a_batch_that_took_more_than_predicted_lowers_the_budget() -> None:
    rows = short_rows([800] * 16)
    predicted = batch_bytes(limits_of(), rows)
    backoff = Backoff(limits_of(predicted), meter=FakeMeter([2 * predicted, predicted // 2]))
    run_all(backoff, [rows], Runner(MemoryError, lambda _: False))
    assert backoff.limits.budget_bytes == predicted // 2
    run_all(backoff, [short_rows([5])], Runner(MemoryError, lambda _: False))
    assert backoff.limits.budget_bytes == predicted // 2
    assert (backoff.predicted_bytes, backoff.measured_bytes) == (predicted, 2 * predicted)


def test_batches_are_measured_from_the_first_one_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap keeps what a batch leaves: the next one reuses it, so its own growth says too little, or too much."""
    batches = [short_rows([800] * 16), short_rows([800] * 4)]
    predicted = batch_bytes(limits_of(), batches[0])
    meter, starts, said = FakeMeter([predicted, predicted]), [0], list[str]()
    monkeypatch.setattr(meter, "start", lambda: starts.append(1))
    backoff = Backoff(limits_of(), meter=meter, say=said.append)
    run_all(backoff, batches, Runner(MemoryError, lambda _: False))
    backoff.end()
    assert sum(starts) == 1
    assert not said


@pytest.mark.parametrize(("share", "is_plenty"), [(1.5, False), (2, True)])
def test_where_memory_is_plenty_steps_use_it_for_speed(share: float, is_plenty: bool) -> None:
    rows = short_rows([800] * 16)
    predicted = batch_bytes(limits_of(), rows)
    told: list[bool] = []
    backoff = Backoff(limits_of(int(share * predicted)), meter=FakeMeter([2 * predicted]), reuse_blocks=told.append)
    run_all(backoff, [rows], Runner(MemoryError, lambda _: False))
    assert told == [False]  # prefills free their blocks
    backoff.begin_steps()
    assert told == [False, is_plenty]
    assert (backoff.limits.budget_bytes == int(share * predicted)) == is_plenty


def test_a_batch_too_small_to_tell_changes_nothing() -> None:
    rows = short_rows([5])
    budget = 2 * batch_bytes(limits_of(), rows)
    backoff = Backoff(limits_of(budget), meter=FakeMeter([budget]))
    run_all(backoff, [rows], Runner(MemoryError, lambda _: False))
    assert backoff.limits.budget_bytes == budget


def test_a_peak_that_cannot_be_measured_is_unknown() -> None:
    backoff = Backoff(limits_of(), meter=FakeMeter([None]))
    run_all(backoff, [short_rows([5])], Runner(MemoryError, lambda _: False))
    assert backoff.measured_bytes is None


# The engine on a real model.


def sequences_of(model: Model, prompts: list[str]) -> list[Sequence]:
    return encode(requests_of(prompts, max_new_tokens=6), model.checkpoint.tokenizer)


def batches_of(model: Model, num_rows: int) -> ReferenceEngine:
    return ReferenceEngine(
        model, limits_of(num_rows=num_rows), Sampler(model.checkpoint.eos_token_ids, recompute=model.logits_alone)
    )


PROMPTS = ["My dog is", "It will rain in the", "I want to eat a big bowl of", "Once upon a time", "The", "She said"]


@each_kind
@pytest.mark.parametrize("step", [0, 3], ids=["in the prefill", "in a step"])
def test_the_engine_s_tokens_are_those_of_a_run_that_never_failed(
    bundled: Model, monkeypatch: pytest.MonkeyPatch, make_error: Callable[[], Exception], step: int
) -> None:
    engine = make_engine(bundled, EngineOptions("reference"))
    wanted = {s.request.id: s.output_ids for s in finish_all(engine, sequences_of(bundled, PROMPTS))}
    tensors: list[weakref.ref[torch.Tensor]] = []
    forward = bundled.network.forward
    state = {"failed": False, "calls": 0}

    def failing(*args: object, **kwargs: object) -> object:
        if len(tensors) and state["failed"]:
            assert not any(tensor() is not None for tensor in tensors), "the failed batch's logits are alive"
        output = forward(*args, **kwargs)
        state["calls"] += 1
        if len(output.logits) == len(PROMPTS) and state["calls"] == step + 1:
            tensors.append(weakref.ref(output.logits))
            state["failed"] = True
            raise make_error()
        return output

    monkeypatch.setattr(bundled.network, "forward", failing)
    failing_engine = batches_of(bundled, len(PROMPTS))
    got = {s.request.id: s.output_ids for s in finish_all(failing_engine, sequences_of(bundled, PROMPTS))}
    assert state["failed"]
    assert got == wanted
    assert failing_engine.stats.batches == 2


def test_a_row_too_large_for_memory_is_an_error_record_among_results(
    bundled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = bundled.network.forward

    def failing(*args: object, **kwargs: object) -> object:
        ids = kwargs["input_ids"]
        assert isinstance(ids, torch.Tensor)
        if ids.shape[1] > 8:
            raise MemoryError
        return forward(*args, **kwargs)

    monkeypatch.setattr(bundled.network, "forward", failing)
    engine = batches_of(bundled, 4)
    long = "one two three four five six seven eight nine ten"
    results: list[Result] = list(
        Pipeline(bundled.checkpoint, engine).run(requests_of(["My dog is", long, "The"], max_new_tokens=2))
    )
    assert [result.finish_reason for result in results] == ["length", "error", "length"]
    assert results[1].error is not None
    assert results[1].error.startswith("out of memory: this row alone (10 prompt + 2 new tokens) needs about ")
    assert results[1].text == ""
