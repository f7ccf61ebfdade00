"""Prompt lookup: the same tokens and bits as without it, whatever rows ask for, in fewer steps if text repeats."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma3TextConfig, GPT2Config, Lfm2Config, LlamaConfig, PretrainedConfig

from batchgen.engines import finish_all, make_engine
from batchgen.engines.continuous.drafts import Drafts
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.continuous.memory import PAGE
from batchgen.engines.continuous.network import slot_network
from batchgen.engines.continuous.row_counts import RowCounts
from batchgen.engines.continuous.slot_model import FEW_TOKENS, FEWEST_ROWS
from batchgen.model import Checkpoint, Model, open_model
from batchgen.records import EngineOptions, EngineStats, Request, SamplingParams, Sequence
from tests.support.families import SHAPE, SMALL, config_of
from tests.support.models import model_of

KINDS = 64  # of tokens in prompts
TINY = {**SHAPE, "max_position_embeddings": 256}
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **SMALL),
    "three heads": LlamaConfig(**{**TINY, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "windows": Gemma3TextConfig(
        head_dim=16, num_key_value_heads=2, sliding_window=20,
        layer_types=["sliding_attention", "full_attention"], **TINY,
    ),
    "latents": config_of("deepseek_v2"),
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
Logits = dict[tuple[int, int], torch.Tensor]  # by row and token


@cache
def bundled() -> Checkpoint:
    return open_model("bundled", device="cpu").checkpoint


@cache
def tiny(architecture: str, dtype: torch.dtype = torch.float32) -> Model:
    model = model_of(CONFIGS[architecture], bundled())
    return replace(model, network=model.network.to(dtype), dtype=dtype)


def answer(
    model: Model, rows: list[tuple[list[int], SamplingParams]], size: int | None = None, **options: Any
) -> tuple[list[tuple[Any, ...]], Logits, EngineStats]:
    """What rows get, the logits that each token was chosen from, and what lookup did."""
    seen: Logits = {}

    def note(logits: torch.Tensor, sequences: Any) -> None:
        for row, sequence in enumerate(sequences):
            seen[sequence.request.index, sequence.num_output_tokens] = logits[row].clone()

    chosen = EngineOptions("continuous", batch_size=size, **options)
    engine = make_engine(model, chosen, on_logits=note)
    sequences = [Sequence(Request(i, str(i), "", params), 0, list(ids)) for i, (ids, params) in enumerate(rows)]
    done = sorted(finish_all(engine, sequences), key=lambda s: s.request.index)
    return [(s.output_ids, s.finish_reason, s.logprobs, s.error) for s in done], seen, engine.stats


def same(model: Model, rows: list[tuple[list[int], SamplingParams]], size: int | None = None) -> EngineStats:
    """Run rows with and without lookup, which must give the same; return what lookup did."""
    plain, plain_logits, before = answer(model, rows, prompt_lookup=False)
    found, logits, stats = answer(model, rows, size)
    assert before.drafted_tokens == 0
    assert found == plain
    assert logits.keys() == plain_logits.keys()
    assert all(torch.equal(logits[key], plain_logits[key]) for key in logits)
    return stats


def repeating(length: int, seed: int = 0) -> list[int]:
    """Return tokens that contain repeated sequences."""
    source = random.Random(seed)
    phrase = [source.randrange(KINDS) for _ in range(7)]
    return [token for _ in range(length) for token in (*phrase[: source.randint(2, 7)], source.randrange(KINDS))][
        :length
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_tokens_and_bits_are_those_without(architecture: str, dtype: torch.dtype) -> None:
    greedy = SamplingParams(max_new_tokens=24, ignore_eos=True)
    drawn = replace(greedy, temperature=0.7, top_k=3)
    opening = repeating(PAGE, seed=9)
    rows = [(repeating(n, seed=n), params) for n in (3, 50) for params in (greedy, drawn)]
    rows += [(opening + repeating(n, seed=n), greedy) for n in (4, 9)]
    model = tiny(architecture, dtype)
    assert same(model, rows, 3).accepted_tokens > 0


@pytest.mark.parametrize("num_rows", [1, 3])
def test_drafts_that_do_not_fit_into_memory_fail_no_row(num_rows: int) -> None:
    model = tiny("gpt2")
    rows = [(repeating(30, seed=n), SamplingParams(max_new_tokens=20, ignore_eos=True)) for n in range(num_rows)]
    plain, _, _ = answer(model, rows, prompt_lookup=False)
    own, _ = slot_network(model)
    assert own is not None

    def refuse(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > FEWEST_ROWS:
            raise torch.OutOfMemoryError

    handle = own.network.get_input_embeddings().register_forward_pre_hook(refuse)
    try:
        found, _, stats = answer(model, rows)
    finally:
        handle.remove()
    assert found == plain
    assert stats.new_tokens == 20 * num_rows


DRAWN = st.sampled_from([{}, {}, {"temperature": 0.5, "top_k": 2}, {"temperature": 1.0, "top_p": 0.3}])
PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 20),
    min_new_tokens=st.integers(0, 1),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    no_repeat_ngram_size=st.sampled_from([0, 0, 3]),
    stop_token_ids=st.sampled_from([(), tuple(range(0, 50257, 500))]),
    logprobs=st.sampled_from([None, None, 2]),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 3),
)
ROWS = st.lists(
    st.tuples(st.integers(1, 70), st.integers(0, 5), PARAMS, DRAWN).map(
        lambda row: (repeating(row[0], row[1]), replace(row[2], **row[3]))
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=6)
@given(st.sampled_from(list(CONFIGS)), st.sampled_from(DTYPES), ROWS, st.sampled_from([1, 2, 4, None]))
def test_whatever_rows_ask_for_is_as_without(
    architecture: str, dtype: torch.dtype, rows: list[tuple[list[int], SamplingParams]], size: int | None
) -> None:
    same(tiny(architecture, dtype), rows, size)


def test_stop_strings_and_constraints_end_rows_where_they_do_without(bundled_model: Model) -> None:
    codec = bundled_model.checkpoint.codec
    text = "The dog is in the house. The dog is in the garden. The dog is in"
    plain = SamplingParams(max_new_tokens=24, ignore_eos=True)
    kinds = [
        replace(plain, stop=(" dog",)),
        replace(plain, stop=("the",), min_new_tokens=5),
        replace(plain, regex=r"(the dog is [a-z]+\. ){4}"),
        replace(plain, choice=("the dog is in the house", "the dog is in the garden")),
    ]
    rows = [(codec(text)["input_ids"], params) for params in kinds]
    for size in (1, 4):
        same(bundled_model, rows, size)


@pytest.fixture(scope="module")
def bundled_model() -> Model:
    return open_model("bundled", device="cpu")


def steps_of(model: Model, rows: list[tuple[list[int], SamplingParams]], **options: Any) -> int:
    """Return how many steps the rows take."""
    engine = make_engine(model, EngineOptions("continuous", batch_size=1, **options))
    assert isinstance(engine, ContinuousEngine)
    engine.add([Sequence(Request(i, i, "", params), 0, list(ids)) for i, (ids, params) in enumerate(rows)])
    num_steps = 0
    while not engine.is_idle:
        engine.step()
        num_steps += 1
    return num_steps


def loops(model: Model) -> list[int]:
    """Return a prompt after which a random model keeps repeating a few tokens."""
    [(tokens, *_)], _, _ = answer(model, [([1, 2], SamplingParams(max_new_tokens=150, ignore_eos=True))])
    return tokens


def test_a_model_that_repeats_itself_takes_a_fifth_of_the_steps() -> None:
    model = tiny("windows")
    prompt = loops(model)
    rows = [(prompt, SamplingParams(max_new_tokens=80, ignore_eos=True))]
    stats = same(model, rows)
    assert stats.accepted_tokens >= 60
    assert steps_of(model, rows) * 5 < steps_of(model, rows, prompt_lookup=False) == 80


def test_no_column_is_asked_for_that_a_row_cannot_come_to_need() -> None:
    model = tiny("windows")
    prompt = loops(model)[: 2 * PAGE - 7]
    engine = make_engine(model, EngineOptions("continuous", batch_size=1))
    assert isinstance(engine, ContinuousEngine)
    engine.add([Sequence(Request(0, 0, "", SamplingParams(max_new_tokens=8, ignore_eos=True)), 0, prompt)])
    while not engine.is_idle:
        engine.step()
        assert engine.slot_model.cache.pools[-1].num_used <= 2


def test_where_bits_depend_on_the_batch_nothing_is_looked_up() -> None:
    model = tiny("windows", torch.bfloat16)
    rows = [(loops(tiny("windows")), SamplingParams(max_new_tokens=20, ignore_eos=True))]
    assert answer(model, rows)[2].drafted_tokens > 0
    assert answer(model, rows, exact=False)[2].drafted_tokens == 0


def test_states_cannot_be_taken_back_so_nothing_is_looked_up(checkpoint: Checkpoint) -> None:
    config = Lfm2Config(num_key_value_heads=2, layer_types=["conv", "full_attention"], conv_L_cache=3, **TINY)
    rows = [(repeating(40), SamplingParams(max_new_tokens=20, ignore_eos=True))]
    assert answer(model_of(config, checkpoint), rows)[2].drafted_tokens == 0


def test_many_rows_get_one_token_each() -> None:
    rows = [(repeating(40, n), SamplingParams(max_new_tokens=6, ignore_eos=True)) for n in range(FEW_TOKENS)]
    assert answer(tiny("gpt2"), rows, FEW_TOKENS)[2].drafted_tokens == 0


@pytest.mark.parametrize(
    ("counts", "num_rows", "room"),
    [
        ([RowCounts()], 1, FEW_TOKENS - 1),
        ([RowCounts(least=2)], 5, FEW_TOKENS - 5),
        ([RowCounts(block=64, fewer=(1, 4, 8))], 1, FEWEST_ROWS - 1),
        ([RowCounts(block=64, fewer=(1, 4, 8)), RowCounts(block=64)], 5, 3),
        ([RowCounts(block=64)], 1, FEW_TOKENS - 1),
        ([RowCounts(block=64)], 100, 0),
    ],
)
def test_a_step_has_room_for_what_costs_little(counts: list[RowCounts], num_rows: int, room: int) -> None:
    engine = make_engine(tiny("gpt2"), EngineOptions("continuous"))
    assert isinstance(engine, ContinuousEngine)
    engine.slot_model.row_counts = set(counts)
    assert engine.slot_model.room_beside(num_rows) == room


def test_a_wrong_guess_that_is_no_number_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = KINDS
    model = model_of(CONFIGS["three heads"], bundled())
    with torch.no_grad():
        model.network.get_input_embeddings().weight[bad] = torch.nan
    guesses: list[int] = []

    def guess(drafts: Drafts, tokens: list[int], most: int) -> list[int]:
        guesses.append(most)
        return [bad] * most

    monkeypatch.setattr(Drafts, "guess", guess)
    rows = [(repeating(n, n), SamplingParams(max_new_tokens=PAGE, logit_bias={bad: -100.0})) for n in (PAGE - 1, 5)]
    same(model, rows)
    assert guesses
