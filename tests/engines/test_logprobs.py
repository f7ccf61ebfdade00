"""Log-probabilities of generated tokens: the model's own, however the tokens were chosen, in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from batchgen import Model
from batchgen.engines import finish_all, make_engine
from batchgen.engines.pool.worker import Answer
from batchgen.engines.sampling.logprobs import likeliest
from batchgen.records import EngineOptions, FieldError, Request, SamplingParams, Sequence, TokenLogprob
from tests.support.rows import encoded, ragged_prompts

# Each changes which token is chosen, or how; none changes the model's own distribution.
WAYS = [
    {},
    {"temperature": 0.8, "top_p": 0.9},
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"temperature": 1.3, "num_samples": 2, "presence_penalty": 1.0},
    {"logit_bias": {11: 5.0}, "min_new_tokens": 3},
]
ENGINES = ["reference", "continuous"]


def mixed_rows(model: Model, number: int = 15, logprobs: int | None = 4) -> list[Sequence]:
    prompts = ragged_prompts(number, longest=20)
    rows = [
        encoded([p], model, max_new_tokens=6, logprobs=logprobs, **WAYS[i % len(WAYS)]) for i, p in enumerate(prompts)
    ]
    return [row for samples in rows for row in samples]


def finished(model: Model, rows: list[Sequence], engine: str, batch_size: int = 8, **options: object) -> list[Sequence]:
    return list(finish_all(make_engine(model, EngineOptions(engine, batch_size=batch_size, **options)), rows))


def alone(model: Model, row: Sequence) -> Iterator[torch.Tensor]:
    """Return the model's log-probabilities `[V]` before each output token, from one unpadded forward."""
    with torch.inference_mode():
        logits = model.network(torch.tensor([row.token_ids])).logits[0].float()
    yield from logits.log_softmax(-1)[row.num_prompt_tokens - 1 : -1]


def check(model: Model, row: Sequence, number: int) -> None:
    assert len(row.logprobs) == row.num_output_tokens > 0
    for entry, token, expected in zip(row.logprobs, row.output_ids, alone(model, row), strict=True):
        assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-4)
        best = expected.topk(number).values.tolist() if number else []
        assert [logprob for _, logprob in entry.top] == pytest.approx(best, abs=1e-4)
        assert [float(expected[token]) for token, _ in entry.top] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_they_are_those_of_an_unpadded_forward_of_the_row_alone(bundled: Model, engine: str) -> None:
    for row in finished(bundled, mixed_rows(bundled), engine):
        check(bundled, row, 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_they_do_not_depend_on_the_batch(bundled: Model, engine: str) -> None:
    one, many = (finished(bundled, mixed_rows(bundled), engine, size) for size in (1, 7))
    found = {(row.request.prompt, row.sample_index): row for row in one}
    for row in many:
        other = found[row.request.prompt, row.sample_index]
        assert row.output_ids == other.output_ids
        assert [e.logprob for e in row.logprobs] == pytest.approx([e.logprob for e in other.logprobs], abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_that_asks_for_none_has_none_beside_rows_that_do(bundled: Model, engine: str) -> None:
    quiet, told, bare = (mixed_rows(bundled, 3, logprobs) for logprobs in (None, 2, 0))
    finished(bundled, [*quiet, *told, *bare], engine)
    assert not any(row.logprobs for row in quiet)
    for row in told:
        check(bundled, row, 2)
    for row in bare:
        check(bundled, row, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_near_tie_has_the_numbers_that_it_was_decided_by(bundled: Model, engine: str) -> None:
    """Every step is decided again here, so the numbers are those of the row alone to the last bit."""
    rows = encoded(ragged_prompts(4), bundled, max_new_tokens=3, logprobs=1)
    engine_of_all = make_engine(bundled, EngineOptions(engine, batch_size=4))
    sampler = engine_of_all.sampler
    decide = sampler._decide
    sampler._decide = lambda logits, sequences: [[token, 1, broken] for token, _, broken in decide(logits, sequences)]
    for row in finish_all(engine_of_all, rows):
        for step, entry in enumerate(row.logprobs):
            so_far = Sequence(row.request, 0, row.input_ids, row.output_ids[:step])
            with torch.inference_mode():
                expected = bundled.logits_alone(so_far).log_softmax(-1)
            assert entry.logprob == pytest.approx(float(expected[row.output_ids[step]]), abs=2e-6)
            assert entry.top[0][0] == row.output_ids[step]


def test_the_token_that_ends_a_row_is_among_them(bundled: Model) -> None:
    [row] = encoded(["My dog is"], bundled, max_new_tokens=9, logprobs=0)
    finished(bundled, [row], "continuous")
    [again] = encoded(["My dog is"], bundled, max_new_tokens=9, logprobs=0, stop_token_ids=(row.output_ids[2],))
    finished(bundled, [again], "continuous")
    assert again.finish_reason == "stop"
    assert again.output_ids == row.output_ids[:3]
    assert len(again.logprobs) == 3


def test_a_step_that_is_done_again_counts_once() -> None:
    row = Sequence(Request(0, "0", "a"), 0, [1])
    row.note_logprob(TokenLogprob(-1.0))
    row.output_ids.append(5)
    row.note_logprob(TokenLogprob(-2.0))
    row.note_logprob(TokenLogprob(-3.0))
    assert [entry.logprob for entry in row.logprobs] == [-1.0, -3.0]


def test_equal_rows_that_are_answered_once_all_have_them(bundled: Model) -> None:
    rows = encoded(["My dog is"] * 3, bundled, max_new_tokens=3, logprobs=1)
    finished(bundled, rows, "continuous")
    for row in rows:
        check(bundled, row, 1)


def test_a_worker_sends_them(bundled: Model) -> None:
    [row] = finished(bundled, encoded(["My dog is"], bundled, max_new_tokens=2, logprobs=1), "continuous")
    assert Answer.of(row).logprobs == row.logprobs


def test_beams_have_none() -> None:
    with pytest.raises(FieldError, match="logprobs is not supported with num_beams 2"):
        SamplingParams(num_beams=2, logprobs=0)


@pytest.mark.parametrize("number", [-1, 21, "3", True])
def test_a_number_of_alternatives_is_from_0_to_20(number: object) -> None:
    with pytest.raises(FieldError, match="logprobs"):
        SamplingParams(logprobs=number)


@pytest.mark.parametrize("vocab_size", [3, 127, 128, 1000, 5000])
@pytest.mark.parametrize("number", [0, 1, 5, 20])
def test_the_likeliest_are_those_of_a_whole_sort(vocab_size: int, number: int) -> None:
    logits = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    values, tokens = likeliest(logits, number)
    best = logits.sort(-1, descending=True)
    width = min(number, vocab_size)
    assert torch.equal(values, best.values[:, :width])
    assert torch.equal(tokens, best.indices[:, :width])
