"""Scores are those of an unpadded forward of each row alone, in any batch, with or without shared prompts."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

from batchgen import Model
from batchgen.engines import finish_all, make_scoring_engine
from batchgen.engines.scoring.bits import are_same as bits_are_same
from batchgen.engines.scoring.engine import ScoringEngine
from batchgen.engines.scoring.memory import ScoringMemory
from batchgen.engines.scoring.network import ScoringNetwork
from batchgen.engines.scoring.work import ScoringWork, padded, plan_work, shared_tokens
from batchgen.model import Checkpoint
from batchgen.model.chat import Chat
from batchgen.model.footprint import footprint_of
from batchgen.model.passages import PassageEncoder
from batchgen.records import BATCH_INVARIANT, EngineChoice, EngineOptions, Passage, Request, SamplingParams, Sequence
from tests.support.models import SHAPE, model_of
from tests.support.rows import ragged_prompts

ENDS = (" the dog was", " a", " of the old house and the rain")


def requests(number: int = 24, logprobs: int | None = 2) -> list[Request]:
    """Return texts, continuations and choices in turn, of one to forty words; some choices have one token."""
    params = SamplingParams(logprobs=logprobs)
    kinds = [("text", ()), ("continuation", ENDS[:1]), ("choices", ENDS), ("choices", (" a", " the", " dog"))]
    made = []
    for index, prompt in enumerate(ragged_prompts(number)):
        kind, replies = kinds[index % 4]
        made.append(Request(index, str(index), prompt, params, scored=kind, replies=replies))
    return made


def encoder(model: Model, **options: object) -> PassageEncoder:
    return PassageEncoder(model.checkpoint, Chat({}, lambda: model.checkpoint.codec), **options)


def scored(model: Model, rows: list[Request], batch_size: int | None = None, *, share: bool = True) -> list[Sequence]:
    sequences = encoder(model).encode(rows)
    random.Random(0).shuffle(sequences)
    options = EngineOptions(batch_size=batch_size, share_prefixes=share)
    return sorted(finish_all(make_scoring_engine(model, options), sequences), key=lambda row: row.request.index)


def numbers(row: Sequence) -> list[list[float]]:
    return [[entry.logprob for entry in row.scores[place]] for place in range(len(row.passages))]


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    return replace(model, network=deepcopy(model.network).to(dtype), dtype=dtype)


def alone(model: Model, passage: Passage) -> list[float]:
    with torch.inference_mode():
        logits = model.network(torch.tensor([passage.token_ids])).logits[0].float()
    logprobs = logits.log_softmax(-1)
    places = range(passage.start, len(passage.token_ids))
    return [float(logprobs[place - 1, passage.token_ids[place]]) for place in places]


def test_every_token_has_the_number_of_the_row_alone(bundled: Model) -> None:
    expected: dict[Passage, list[float]] = {}
    for batch_size, share in product((1, 7, 64), (True, False)):
        for row in scored(bundled, requests(12), batch_size, share=share):
            assert row.error is None
            for passage, found in zip(row.passages, numbers(row), strict=True):
                if passage not in expected:
                    expected[passage] = alone(bundled, passage)
                assert found == pytest.approx(expected[passage], abs=1e-4), (batch_size, share)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "llama", "bloom"])
def test_families_of_all_kinds_of_positions_are_right(tiny_models: dict[str, Model], name: str) -> None:
    model = tiny_models[name]
    assert ScoringNetwork(model).is_split
    for row in scored(model, requests(9), 5):
        for passage, found in zip(row.passages, numbers(row), strict=True):
            assert found == pytest.approx(alone(model, passage), abs=1e-3)


def test_what_a_family_does_to_its_logits_is_done(checkpoint: Checkpoint) -> None:
    """Gemma 2 caps its logits; some of its layers have a sliding window, so its prompts are not shared."""
    config = Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8, max_position_embeddings=128, sliding_window=8)
    model = model_of(config, checkpoint, "eager")
    network = ScoringNetwork(model)
    assert (network.is_split, network.can_share) == (True, False)
    for row in scored(model, requests(9), 4):
        for passage, found in zip(row.passages, numbers(row), strict=True):
            assert found == pytest.approx(alone(model, passage), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_do_not_depend_on_the_batch(bundled: Model, dtype: torch.dtype) -> None:
    """This way a run that is resumed after a kill writes the same bytes."""
    model = bundled if dtype == bundled.dtype else in_dtype(bundled, dtype)
    choices: list[EngineChoice] = []
    make_scoring_engine(model, agree=lambda choice: choices.append(choice) or choice).close()
    assert choices[0].bits == BATCH_INVARIANT
    whole = {row.request.index: numbers(row) for row in scored(model, requests(16), 64)}
    for batch_size, chosen in ((1, requests(16)[:5]), (7, requests(16)[3:]), (None, requests(16)[10:12])):
        for row in scored(model, chosen, batch_size):
            assert numbers(row) == whole[row.request.index]


def test_products_that_depend_on_the_batch_are_noticed(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    network = ScoringNetwork(bundled)
    hidden = network.hidden
    monkeypatch.setattr(network, "hidden", lambda rows, *more: hidden(rows, *more) * (1 + 1e-6 * len(rows)))
    assert bits_are_same(network) is False


def test_choices_keep_their_bits_where_memory_runs_out(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [replace(row, prompt=row.prompt * 4) for row in requests(12) if len(row.replies) > 1]
    expected = [numbers(row) for row in scored(bundled, rows)]
    score = ScoringEngine._score

    def scarce(engine: ScoringEngine, work: ScoringWork) -> None:
        if len(work.items) > 1:
            raise MemoryError
        score(engine, work)

    monkeypatch.setattr(ScoringEngine, "_score", scarce)
    assert [numbers(row) for row in scored(bundled, rows)] == expected


def test_the_likeliest_tokens_come_with_the_numbers(bundled: Model) -> None:
    [row] = scored(bundled, [Request(0, "0", "My dog is", SamplingParams(logprobs=3), scored="text")])
    [passage] = row.passages
    with torch.inference_mode():
        expected = bundled.network(torch.tensor([passage.token_ids])).logits[0].float().log_softmax(-1)
    for entry, logprobs in zip(row.scores[0], expected[passage.start - 1 :], strict=False):
        assert [token for token, _ in entry.top] == logprobs.topk(3).indices.tolist()
        assert [logprob for _, logprob in entry.top] == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-4)


def test_a_network_without_two_parts_scores_rows_alone(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [numbers(row) for row in scored(bundled, requests(6))]
    monkeypatch.setattr(ScoringNetwork, "_holds", lambda self, rows, wanted: False)
    bundled = replace(bundled, network=bundled.on_same_weights().network)  # not tried yet
    said: list[str] = []
    engine = make_scoring_engine(bundled, say=said.append)
    found = sorted(finish_all(engine, encoder(bundled).encode(requests(6))), key=lambda row: row.request.index)
    for row, other in zip(found, expected, strict=True):
        for one, two in zip(numbers(row), other, strict=True):
            assert one == pytest.approx(two, abs=1e-4)
    assert "one at a time" in said[0]


def test_logits_that_are_not_numbers_fail_their_row(checkpoint: Checkpoint) -> None:
    model = model_of(LlamaConfig(**SHAPE, max_position_embeddings=128), checkpoint)
    engine = make_scoring_engine(model)
    with torch.no_grad():
        model.network.get_input_embeddings().weight[11] = float("nan")  # the comma
    broken, fine = (Request(i, str(i), text, scored="text") for i, text in enumerate(["a, b", "a b"]))
    rows = {row.request.id: row for row in finish_all(engine, encoder(model).encode([broken, fine]))}
    assert rows["0"].error is not None
    assert "NaN" in rows["0"].error
    assert rows["1"].error is None


def test_out_of_memory_goes_on_in_halves(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [numbers(row) for row in scored(bundled, requests(9))]
    engine = make_scoring_engine(bundled)
    assert isinstance(engine, ScoringEngine)
    score, most = engine._score, 3

    def scarce(work: object) -> None:
        if len(work.items) > most:
            raise MemoryError
        score(work)

    monkeypatch.setattr(engine, "_score", scarce)
    found = sorted(finish_all(engine, encoder(bundled).encode(requests(9))), key=lambda row: row.request.index)
    for row, other in zip(found, expected, strict=True):
        assert row.error is None
        for one, two in zip(numbers(row), other, strict=True):
            assert one == pytest.approx(two, abs=1e-4)


def test_a_row_that_fits_nowhere_fails_alone(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_scoring_engine(bundled)
    assert isinstance(engine, ScoringEngine)
    score = engine._score

    def scarce(work: object) -> None:
        if any(item.sequence.request.index == 2 for item in work.items):
            raise MemoryError
        score(work)

    monkeypatch.setattr(engine, "_score", scarce)
    found = list(finish_all(engine, encoder(bundled).encode(requests(6))))
    assert sorted(row.request.index for row in found) == list(range(6))
    assert {row.request.index for row in found if row.error} == {2}


def test_memory_is_predicted_for_what_is_scored(bundled: Model) -> None:
    memory = ScoringMemory(footprint_of(bundled.checkpoint, bundled.dtype_name, "scoring"))
    few, all_of_them = (memory.of_forward(8, 72, number, keeps_keys=False).total for number in (6, 8 * 72))
    assert few < all_of_them < memory.estimate(8, 72, SamplingParams()).total


# What runs together.


def rows_of(*passages: tuple[Passage, ...]) -> list[Sequence]:
    return [Sequence(Request(i, str(i), ""), 0, [], passages=own) for i, own in enumerate(passages)]


def test_a_prompt_of_choices_is_computed_once() -> None:
    choices = tuple(Passage((*range(40), last, last), 40) for last in (7, 8, 9))
    [work] = plan_work(rows_of(choices), lambda columns: 8, share=True)
    assert (work.prefix, work.columns, len(work.items)) == (40, 8, 3)
    assert [part.prefix for part in plan_work(rows_of(choices), lambda columns: 8, share=False)] == [0]


@pytest.mark.parametrize(
    ("passages", "tokens"),
    [
        ([Passage(tuple(range(20)), 15)], 0),
        ([Passage((*range(15), 1, 2), 15), Passage((*range(15), 3, 4), 15), Passage((*range(15), 5), 15)], 15),
        ([Passage((*range(14), 9, 2), 15), Passage((*range(14), 8, 4), 15)] * 2, 14),
        ([Passage((1, 2, 3), 2), Passage((1, 2, 4), 2)], 0),
    ],
)
def test_shared_is_what_pays_and_none_of_it_is_scored(passages: list[Passage], tokens: int) -> None:
    assert shared_tokens(passages) == tokens


def test_no_more_rows_run_together_than_there_is_room_for() -> None:
    rows = rows_of(*[(Passage(tuple(range(9)), 1),)] * 10)
    assert [len(work.items) for work in plan_work(rows, lambda columns: 4, share=True)] == [4, 4, 2]


def test_prompts_of_like_length_run_together() -> None:
    rows = [tuple(Passage((*range(length), last, last), length) for last in (7, 8, 9)) for length in (40, 42, 45)]
    [work] = plan_work(rows_of(*rows), lambda columns: 9, share=True)
    assert (work.prefix, work.columns, len(work.groups), work.num_rows) == (40, 8, 3, 9)


def test_choices_of_one_token_need_no_more_than_their_prompts() -> None:
    rows = [tuple(Passage((*range(length), last), length) for last in range(10)) for length in (41, 45, 48)]
    parts = plan_work(rows_of(*rows), lambda columns: 2, share=True)
    assert [(part.prefix, part.columns, part.num_rows, len(part.items)) for part in parts] == [
        (48, 0, 2, 20),
        (48, 0, 1, 10),
    ]


def test_a_row_with_more_choices_than_there_is_room_for_is_cut() -> None:
    choices = tuple(Passage((*range(40), last, last), 40) for last in range(10))
    parts = plan_work(rows_of(choices), lambda columns: 4, share=True)
    assert [(part.prefix, len(part.items)) for part in parts] == [(40, 4), (40, 4), (40, 2)]


def test_a_row_is_padded_by_its_own_length_and_never_over_a_border() -> None:
    assert [padded(length) for length in (8, 9, 129)] == [8, 16, 144]
    assert (padded(1020, [1023]), padded(61, [60, 100])) == (1023, 64)
