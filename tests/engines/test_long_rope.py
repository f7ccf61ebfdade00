"""LongRoPE in slots: rows below, above and across the limit get what plain `generate` gives each alone."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Phi3Config

from batchgen.engines import finish_all, make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.continuous.memory import PAGE, PREFILL_TOKENS
from batchgen.engines.continuous.network import bits_of, slot_network
from batchgen.engines.continuous.row_rotary import RowRotary, rotate_by_row
from batchgen.engines.continuous.rows import groups_of
from batchgen.engines.continuous.slot_model import SlotModel
from batchgen.engines.reference.rules import BatchRule, Mixing
from batchgen.engines.sampling.sampler import Sampler
from batchgen.model import Checkpoint, Model, open_model
from batchgen.model.long_rope import LongRope
from batchgen.records import BATCH_INVARIANT, Batch, EngineOptions, EngineStats, Request, SamplingParams, Sequence
from tests.support.engines import limits_of
from tests.support.long_rope import CONFIGS, LIMIT, ROPE, TINY
from tests.support.models import generate_ids_alone, model_of
from tests.support.rows import rows_of, rows_of_lengths

NEW = 12  # tokens
KINDS = 60  # of tokens in prompts
GREEDY = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
DRAWN = replace(GREEDY, temperature=0.8, top_k=5)
Logits = dict[tuple[int, int], torch.Tensor]  # by row and token
Answers = dict[int, Sequence]


@cache
def bundled() -> Checkpoint:
    return open_model("bundled", device="cpu").checkpoint


@cache
def tiny(name: str, dtype: torch.dtype = torch.float32) -> Model:
    model = model_of(CONFIGS[name], bundled())
    return replace(model, network=model.network.to(dtype), dtype=dtype)


def prompts() -> list[list[int]]:
    """Return 32 prompts that stay below the limit, cross it at their first or a later token, or begin above it.

    A third of them have one opening, on both sides.
    """
    source = random.Random(0)
    opening = [source.randrange(KINDS) for _ in range(PAGE)]
    lengths = [1, 1, 5, 20, LIMIT - NEW, LIMIT - NEW + 1, LIMIT - NEW + 2, LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1, 90]
    lengths += [source.randrange(1, 70) for _ in range(9)]
    shared = [1, 2, 7, 7, 8, 8, 9, 9, 10, 20, 40]
    return [[source.randrange(KINDS) for _ in range(length)] for length in lengths] + [
        opening + [source.randrange(KINDS) for _ in range(length)] for length in shared
    ]


PROMPTS = prompts()
assert len(PROMPTS) == 32


@cache
def alone(name: str) -> list[list[int]]:
    return [generate_ids_alone(tiny(name), ids, max_new_tokens=NEW) for ids in PROMPTS]


def answer(
    model: Model, size: int | None, *kinds: SamplingParams, engine: str = "continuous", **options: Any
) -> tuple[Answers, Logits, EngineStats]:
    """Run all prompts in an order that depends on the size; return each row, its logits, and the counts."""
    seen: Logits = {}

    def note(logits: torch.Tensor, sequences: Any) -> None:
        for row, sequence in enumerate(sequences):
            seen[sequence.request.index, sequence.num_output_tokens] = logits[row].clone()

    made = make_engine(model, EngineOptions(engine, batch_size=size, **options), on_logits=note)
    rows = random.Random(size).sample(rows_of(PROMPTS, *kinds), len(PROMPTS))
    return {row.request.index: row for row in finish_all(made, rows)}, seen, made.stats


def tokens(answers: Answers) -> list[list[int]]:
    return [answers[row].output_ids for row in sorted(answers)]


@pytest.mark.parametrize(("size", "share"), [(1, False), (7, True), (7, False), (32, True)])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_get_what_generate_gives_each_alone(name: str, size: int, share: bool) -> None:
    found, _, stats = answer(tiny(name), size, replace(GREEDY, ignore_eos=False), share_prefixes=share)
    assert stats.engine == "continuous"
    assert tokens(found) == alone(name)


@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_sampled_rows_draw_as_they_do_one_at_a_time_in_generate(name: str) -> None:
    expected, _, stats = answer(tiny(name), 1, DRAWN, GREEDY, engine="reference")
    assert stats.engine == "reference"
    for size in (7, 32):
        assert tokens(answer(tiny(name), size, DRAWN, GREEDY)[0]) == tokens(expected)


@pytest.mark.parametrize(
    ("name", "dtype"), [("phi3", torch.float32), ("phi3", torch.bfloat16), ("llama", torch.bfloat16)]
)
def test_a_row_has_the_same_bits_in_any_batch_with_and_without_drafts(name: str, dtype: torch.dtype) -> None:
    model = tiny(name, dtype)
    own, reason = slot_network(model)
    assert own is not None, reason
    assert bits_of(own) == BATCH_INVARIANT
    expected, logits, _ = answer(model, 1, GREEDY, DRAWN, prompt_lookup=False, share_prefixes=False)
    drafted = 0
    for size in (3, 32):
        found, others, stats = answer(model, size, GREEDY, DRAWN)
        drafted += stats.drafted_tokens
        assert tokens(found) == tokens(expected)
        assert logits.keys() == others.keys()
        assert all(torch.equal(logits[key], others[key]) for key in logits)
    assert drafted > 0


class Failing(SlotModel):
    """Runs out of memory in every fifth forward of several rows."""

    num_forwards = 0

    def _forward(self, batch: Batch, **options: bool) -> torch.Tensor:
        self.num_forwards += len(batch.input_ids) > 4
        if self.num_forwards % 5 == 4:
            self.num_forwards += 1
            raise MemoryError
        return super()._forward(batch, **options)


@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_rows_that_lose_their_slots_keep_their_tokens(name: str) -> None:
    own, reason = slot_network(tiny(name))
    assert own is not None, reason
    slot_model = Failing(own)
    limits = limits_of(num_rows=32, has_slots=True)
    engine = ContinuousEngine(slot_model, limits, Sampler(own.checkpoint.eos_token_ids), lookup=True)
    found = {row.request.index: row for row in finish_all(engine, rows_of(PROMPTS, DRAWN, GREEDY))}
    assert slot_model.num_forwards > 4
    assert tokens(found) == tokens(answer(tiny(name), 7, DRAWN, GREEDY)[0])


class Measured(SlotModel):
    """Records the tokens of each prefill, including pads."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.sizes: list[int] = []

    def _forward(self, batch: Batch, **options: bool) -> torch.Tensor:
        self.sizes += [batch.input_ids.numel()] if batch.input_ids.shape[1] > 1 else []
        return super()._forward(batch, **options)


def test_rows_that_their_first_token_sends_back_do_not_join_a_planned_prefill() -> None:
    own, reason = slot_network(tiny("phi3"))
    assert own is not None, reason
    slot_model, source = Measured(own), random.Random(0)
    opening = [1] * PAGE  # after which 128 rows share a prefill
    rows = rows_of(
        [opening + [source.randrange(KINDS) for _ in range(LIMIT - PAGE)] for _ in range(160)],
        replace(GREEDY, max_new_tokens=2),
    )
    limits = limits_of(num_rows=len(rows), has_slots=True)
    engine = ContinuousEngine(slot_model, limits, Sampler(own.checkpoint.eos_token_ids))
    assert all(len(row.output_ids) == 2 for row in finish_all(engine, rows))
    assert max(slot_model.sizes) <= PREFILL_TOKENS


@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_tokens_that_a_constraint_forces_may_cross_the_limit(name: str) -> None:
    forced = replace(
        GREEDY, max_new_tokens=20, ignore_eos=False, regex="The rain in Spain falls mainly on [a-z]{3} plain"
    )
    found, _, _ = answer(tiny(name), 7, forced)
    assert tokens(found) == tokens(answer(tiny(name), 32, forced, engine="reference")[0])


@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_near_ties_are_decided_by_what_the_row_gets_alone(name: str) -> None:
    model, num_prompt, num_new = tiny(name), LIMIT - 3, 9
    prompt = PROMPTS[-1][:num_prompt]
    made = model.network.generate(
        torch.tensor([prompt]), max_new_tokens=num_new, do_sample=False, output_logits=True,
        return_dict_in_generate=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    output = made.sequences[0, num_prompt:].tolist()
    for place, logits in enumerate(made.logits):
        row = Sequence(Request(0, "0", ""), 0, prompt, output[:place])
        with torch.inference_mode():
            torch.testing.assert_close(model.logits_alone(row), logits[0], rtol=0, atol=1e-3)


def test_rows_of_the_trial_that_cross_the_limit_are_no_fault() -> None:
    config = Phi3Config(
        rope_parameters={**ROPE}, sliding_window=None, **{**TINY, "original_max_position_embeddings": 12}
    )
    own, reason = slot_network(model_of(config, bundled()))
    assert own is not None, reason
    assert bits_of(own) == BATCH_INVARIANT


@pytest.mark.parametrize(("name", "renews_keys"), [("phi3", True), ("phimoe", True), ("llama", False)])
def test_a_network_tells_whether_it_renews_keys(name: str, renews_keys: bool) -> None:
    assert tiny(name).long_rope == LongRope(LIMIT, renews_keys)


@pytest.mark.parametrize("name", ["phi3", "phimoe"])
def test_a_row_gets_the_factors_that_it_gets_alone(name: str) -> None:
    network = tiny(name).on_same_weights().network
    own: nn.Module = network.model.rotary_emb
    x = torch.zeros(3, 1, 32)
    starts = {"short": [0, 3], "long": [LIMIT - 4, 90], "both": [2, LIMIT - 5, LIMIT - 4]}
    expected = {kind: [own(x, start + torch.arange(5)[None]) for start in starts[kind]] for kind in starts}
    assert rotate_by_row(network, LIMIT) == 1
    rotary = network.model.rotary_emb
    assert isinstance(rotary, RowRotary)
    for kind, rows in starts.items():
        position_ids = torch.tensor(rows)[:, None] + torch.arange(5)
        rotary.begin(position_ids)
        for table, *alone in zip(rotary(x, position_ids=position_ids), *expected[kind], strict=True):
            assert torch.equal(table, torch.cat(alone))
    positions = torch.arange(5)[None]
    rotary.begin(positions, is_long=True)  # the start of longer rows
    whole = own(x, torch.arange(LIMIT + 1)[None])
    assert all(torch.equal(table, other[:, :5]) for table, other in zip(rotary(x, positions), whole, strict=True))


def test_rows_on_different_sides_share_no_opening() -> None:
    rows = [Sequence(Request(i, str(i), ""), 0, ids) for i, ids in enumerate(PROMPTS)]
    groups = list(groups_of(rows, LongRope(LIMIT, renews_keys=True), share=True, shares_prefixes=True))
    openings = [group[0].opening for group in groups if group[0].opening]
    assert sorted(opening.is_long for opening in openings) == [False, True]
    for group in groups:
        assert len({row.sequence.num_prompt_tokens > LIMIT for row in group}) == 1


def test_drafts_end_at_the_limit() -> None:
    [[row]] = groups_of(rows_of_lengths([LIMIT - 2], GREEDY), LongRope(LIMIT, True), share=True, shares_prefixes=True)
    assert row.guess(9) == [7, 7]
    row.renews_at = LIMIT - 4  # it has grown beyond the limit
    assert len(row.guess(9)) > 2


def test_a_row_that_crosses_counts_with_its_longest_prefill() -> None:
    rows = rows_of_lengths([LIMIT - 3, 3, LIMIT + 5], GREEDY)
    groups = groups_of(rows, LongRope(LIMIT, True), share=True, shares_prefixes=True)
    lengths = [
        (tokens, sampling.max_new_tokens) for group in groups for row in group for tokens, sampling in [row.length]
    ]
    assert lengths == [(LIMIT + 1, NEW - 4), (3, NEW), (LIMIT + 5, NEW)]


def test_a_row_of_one_token_that_crosses_has_a_batch_of_its_own_in_reference() -> None:
    rule = BatchRule(Mixing.padded, 0, short_limit=1)
    crossing, long = rows_of_lengths([1, 5], GREEDY)
    assert rule.key(crossing) != rule.key(long)
