from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

import batchgen
from batchgen import Model, Result
from batchgen.model import Checkpoint
from batchgen.model.padding import encode
from batchgen.pipeline import InOrder, Pipeline
from batchgen.records import EngineStats, Request, Sequence
from tests.support.engines import FakeEngine, slots_of
from tests.support.rows import RAIN, requests_of


def run(checkpoint: Checkpoint, engine: FakeEngine, prompts: list[str], **options: object) -> list[Result]:
    return list(Pipeline(checkpoint, engine, **options).run(requests_of(prompts)))  # type: ignore[arg-type]


def test_results_come_in_input_order(checkpoint: Checkpoint, fake_engine: FakeEngine) -> None:
    prompts = [f"prompt {i}" for i in range(100)]
    results = run(checkpoint, fake_engine, prompts)
    assert [r.index for r in results] == list(range(100))
    assert [r.text for r in results] == prompts  # the fake engine repeats each prompt


def test_rows_in_are_rows_out(checkpoint: Checkpoint, fake_engine: FakeEngine) -> None:
    prompts = random.Random(0).choices(["", "My dog is", "rain " * 1100], k=200)
    results = run(checkpoint, fake_engine, prompts)
    assert [r.prompt for r in results] == prompts
    assert [r.finish_reason == "error" for r in results] == [p != "My dog is" for p in prompts]


def test_a_run_that_is_dropped_in_a_circle_ends_without_a_word(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector ends it when weak references are already dead."""
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    pipeline = Pipeline(bundled.checkpoint, slots_of(bundled))
    circle: list[object] = [pipeline.run([*requests_of(["The"], max_new_tokens=1), *requests_of(RAIN)])]
    next(circle[0])  # type: ignore[call-overload]
    circle.append(circle)
    del pipeline, circle
    gc.collect()
    assert not complaints


def test_windows_double(checkpoint: Checkpoint) -> None:
    engine = FakeEngine(first_window=4)
    run(checkpoint, engine, ["a"] * 28)
    assert [rows for rows in engine.windows if rows] == [4, 8, 16]


def test_only_what_can_run_is_run(checkpoint: Checkpoint, fake_engine: FakeEngine) -> None:
    run(checkpoint, fake_engine, ["", "a", ""])
    assert sum(fake_engine.windows) == 1


def test_an_engine_that_is_busy_is_not_kept_waiting_for_input(checkpoint: Checkpoint) -> None:
    came_empty = threading.Event()

    class BusyEngine(FakeEngine):
        wants_rows = 1

        def add(self, sequences: Iterable[Sequence]) -> None:
            super().add(sequences)
            if len(self.windows) == 2:
                came_empty.set()

        def step(self) -> list[Sequence]:
            return super().step() if came_empty.is_set() else []

    def requests() -> Iterator[Request]:
        first, last = requests_of(["one", "two"])
        yield first
        assert came_empty.wait(10)
        yield last

    assert [r.text for r in Pipeline(checkpoint, BusyEngine()).run(requests())] == ["one", "two"]


def test_every_step_is_told_with_its_tokens(checkpoint: Checkpoint) -> None:
    told: list[int] = []
    results = run(checkpoint, FakeEngine(first_window=1), [*RAIN, ""], on_step=told.append)
    assert len(told) == 2  # windows of one row and of two
    assert sum(told) == sum(r.num_output_tokens for r in results)


def test_a_stop_comes_before_a_step_and_closes_the_engine(checkpoint: Checkpoint, fake_engine: FakeEngine) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, fake_engine, RAIN, should_stop=lambda: True)
    assert (fake_engine.stats.new_tokens, fake_engine.is_closed) == (0, True)


def test_whoever_stops_taking_results_closes_the_engine(checkpoint: Checkpoint, fake_engine: FakeEngine) -> None:
    results = Pipeline(checkpoint, fake_engine).run(requests_of(RAIN))
    next(results)
    assert not fake_engine.is_closed
    results.close()  # type: ignore[attr-defined]
    assert fake_engine.is_closed


def test_rows_leave_in_order_however_they_finish() -> None:
    order = InOrder()
    first, second, third = sequences = [Sequence(request, 0, []) for request in requests_of("abc")]
    order.waiting.extend(sequences)
    assert list(order.pop(second)) == []
    assert list(order.pop(first)) == [first, second]
    assert list(order.pop(third)) == [third]
    assert not order.waiting


def test_results_come_before_the_input_ends(checkpoint: Checkpoint) -> None:
    taken = []

    def requests() -> object:
        for request in requests_of(f"prompt {i}" for i in range(100_000)):
            taken.append(request.index)
            yield request

    results = Pipeline(checkpoint, FakeEngine(first_window=2)).run(requests())  # type: ignore[arg-type]
    assert next(results).index == 0
    assert len(taken) < 100_000
    results.close()  # type: ignore[attr-defined]


def test_stats_add_up(checkpoint: Checkpoint, fake_engine: FakeEngine) -> None:
    pipeline = Pipeline(checkpoint, fake_engine)
    pipeline.count_blank_line()
    list(pipeline.run(requests_of([*RAIN, ""])))
    stats = pipeline.stats()
    assert (stats.rows, stats.errors, stats.blank_lines, stats.batches) == (4, 1, 1, 1)
    assert (stats.prompt_tokens, stats.output_tokens, stats.pad_tokens) == (16, 16, 0)


def test_stats_of_the_engine_are_passed_on(checkpoint: Checkpoint) -> None:
    class MeasuredEngine(FakeEngine):
        stats = EngineStats("fake", 3, 40, 1.5, 2.5, 90, 5, peak_bytes=700, predicted_bytes=60, measured_bytes=50)

    stats = Pipeline(checkpoint, MeasuredEngine()).stats()
    assert (stats.batches, stats.prefill_s, stats.decode_s, stats.decode_work) == (3, 1.5, 2.5, 90)
    assert (stats.peak_bytes, stats.predicted_batch_bytes, stats.measured_batch_bytes) == (700, 60, 50)


def test_the_first_error_is_kept(checkpoint: Checkpoint, fake_engine: FakeEngine) -> None:
    pipeline = Pipeline(checkpoint, fake_engine)
    list(pipeline.run(requests_of(["a", "", ""])))
    assert pipeline.first_error is not None
    assert pipeline.first_error.index == 1


def test_prompt_and_text_are_the_whole_text(bundled: Model) -> None:
    [result] = batchgen.generate("  My dog is", bundled, max_new_tokens=5)
    whole = bundled.checkpoint.tokenizer.decode([*result.input_ids, *result.output_ids])
    assert result.prompt + result.text == whole


def test_python_takes_the_columns_of_a_row(bundled: Model) -> None:
    [result] = batchgen.generate([{"id": "x", "prompt": "My dog is", "topic": "pets"}], bundled, max_new_tokens=1)
    assert (result.id, result.metadata) == ("x", {"topic": "pets"})


def test_a_bad_row_in_python_is_a_result_with_an_error(bundled: Model) -> None:
    good, bad = batchgen.generate(["My dog is", {"no": "prompt"}], bundled, max_new_tokens=1)
    assert (good.error, bad.finish_reason) == (None, "error")
    assert "prompts[1]" in (bad.error or "")


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_k": 5}, {"num_beams": 2, "temperature": 1.0}], ids=str
)
def test_options_that_make_no_sense_raise_value_errors(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^[a-z_]+ "):
        batchgen.generate("x", "bundled", **options)


def test_falling_back_to_the_bundled_model_warns() -> None:
    with pytest.warns(UserWarning, match="using the small bundled model"):
        [result] = batchgen.generate("My dog is", max_new_tokens=1)
    assert result.model == "bundled"


@pytest.mark.parametrize("batch_size", [0, -1, "8"])
def test_a_batch_size_that_is_no_number_of_rows_is_refused(bundled: Model, batch_size: object) -> None:
    with pytest.raises(batchgen.BatchgenError, match="batch_size"):
        batchgen.generate("x", bundled, batch_size=batch_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [str, lambda text: [text], lambda text: (text,)], ids=["text", "list", "tuple"])
def test_stop_is_one_text_or_several(
    bundled: Model, said: Callable[[str, int], str], kind: Callable[[str], object]
) -> None:
    one, two = (said("My dog is", count) for count in (1, 2))
    [result] = batchgen.generate({"prompt": "My dog is"}, bundled, stop=kind(two.removeprefix(one)))
    assert (result.text, result.finish_reason) == (one, "stop")


def test_a_policy_that_does_not_exist_is_refused(bundled: Model) -> None:
    with pytest.raises(ValueError, match="too_long"):
        batchgen.generate("x", bundled, too_long="trunc")  # type: ignore[arg-type]


def test_a_token_that_the_model_does_not_have_fails_its_row(checkpoint: Checkpoint) -> None:
    sequences = encode(requests_of(["My", "dog"]), checkpoint.tokenizer, vocab_size=3700)
    assert [s.error is None for s in sequences] == [True, False]
