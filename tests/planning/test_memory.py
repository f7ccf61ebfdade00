from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, OPTConfig, PretrainedConfig

from batchgen.engines.choice import REFERENCE
from batchgen.engines.continuous.memory import PAGE, PREFILL_TOKENS, SlotMemory, prefill_rows
from batchgen.engines.reference.memory import BatchMemory
from batchgen.model.shape import Footprint, ModelShape, num_parameters
from batchgen.planning.memory import BUDGET_SHARE, BatchLimits, batch_bytes, largest_batch, logits_factor
from batchgen.records import SamplingParams
from tests.support.models import ARCHITECTURES
from tests.support.rows import rows_of_lengths

SHAPE = ModelShape(
    n_layer=12, n_head=12, n_kv_head=12, head_dim=64, n_embd=768, n_inner=3072, vocab_size=50257, n_positions=1024
)
GPT2, HALF = Footprint.of_shape(SHAPE, 4), Footprint.of_shape(SHAPE, 2)
GREEDY = SamplingParams(max_new_tokens=6)
KIB, MIB = 1024, 1024**2
LOGITS = 50257 * 4
LIMITS, SLOTS = BatchLimits(BatchMemory(GPT2), 1 << 50, 64), BatchLimits(SlotMemory(GPT2), 1 << 50, 64)


def sampling_of(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 6, **changes})


def tensor_bytes(rows: int, columns: int) -> int:
    needed = BatchMemory(GPT2).estimate(rows, columns, GREEDY)
    return needed.total - needed.workspace


@pytest.mark.parametrize(("footprint", "kibibytes"), [(GPT2, 72), (HALF, 36)])
def test_a_token_of_gpt2_takes_this_much_cache(footprint: Footprint, kibibytes: int) -> None:
    assert footprint.cache_bytes(1, 1) == kibibytes * KIB
    assert footprint.cache_bytes(3, 5) == 15 * kibibytes * KIB


def test_prefill_of_512_tokens_peaks_where_it_was_measured() -> None:
    assert tensor_bytes(8, 64) / MIB == pytest.approx(69.02, abs=0.1)  # live tensors: 69.0 MiB


def test_prefill_of_4096_tokens_peaks_where_it_was_measured() -> None:
    assert tensor_bytes(8, 512) / MIB == pytest.approx(554, rel=0.002)


def test_the_parts_of_a_prefill_are_those_of_its_peak() -> None:
    needed = BatchMemory(GPT2).estimate(8, 512, GREEDY)
    assert needed.kv_cache == 8 * 512 * 72 * KIB
    assert needed.activations == 8 * 512 * 768 * 4 * 22
    assert needed.attention_mask == 8 * 512**2
    assert needed.logits == needed.weights == 0


def test_the_last_step_peaks_where_it_was_measured() -> None:
    needed = BatchMemory(GPT2).estimate(64, 16, sampling_of(max_new_tokens=48))
    assert needed.kv_cache == 64 * 63 * 72 * KIB  # the 48th token is never fed
    assert needed.logits == 3 * 64 * LOGITS
    assert needed.activations == 63 * 768 * 4 * 22  # one row alone, decided again


def test_the_cache_grows_with_one_layer_s_keys_or_values_at_a_time() -> None:
    few_logits = Footprint.of_shape(ModelShape(2, 2, 2, 32, 64, 256, vocab_size=10), 2)
    assert BatchMemory(few_logits).estimate(4, 10, sampling_of(max_new_tokens=91)).kv_cache == 4 * 100 * 512 * (
        1 + 1 / 4
    )


def test_exact_mode_has_room_to_decide_a_row_again() -> None:
    needed = BatchMemory(GPT2).estimate(1, 8, sampling_of(max_new_tokens=500))
    assert needed.activations == 507 * 768 * 4 * 22


@pytest.mark.parametrize(
    ("options", "units"),
    [
        ({}, 3.0),
        ({"min_new_tokens": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2}, 3.0),  # in place
        ({"temperature": 1.0}, 6.25),
        ({"temperature": 1.0, "top_k": 40}, 7.5),
        ({"temperature": 1.0, "min_p": 0.1}, 8.0),
        ({"temperature": 1.0, "top_p": 0.9}, 10.25),
        ({"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}, 11.25),
    ],
)
def test_choosing_a_token_takes_what_was_measured(options: dict[str, Any], units: float) -> None:
    assert logits_factor(sampling_of(**options), 4) == units
    assert logits_factor(sampling_of(**options), 2) == units - 0.5
    assert logits_factor(sampling_of(**options), 4, copies=False) == units - 2
    assert logits_factor(sampling_of(**options), 2, copies=False) == units - 1.5


def test_beams_keep_their_log_probabilities() -> None:
    assert logits_factor(sampling_of(num_beams=4), 4) == 4


def test_beams_are_rows() -> None:
    beams, rows = (
        BatchMemory(GPT2).estimate(2, 300, sampling_of(num_beams=3)),
        BatchMemory(GPT2).estimate(6, 300, GREEDY),
    )
    assert beams == rows


@pytest.mark.parametrize(("new", "share"), [(6, 0), (600, 0.6)], ids=["a prefill", "a step"])
def test_the_growing_cache_leaves_holes_in_steps_that_keep_blocks(new: int, share: float) -> None:
    sampling = sampling_of(max_new_tokens=new)
    needed, taken = (BatchMemory(GPT2, keeps).estimate(4, 400, sampling) for keeps in (False, True))
    tensors = needed.kv_cache + needed.attention_mask + needed.logits + needed.activations
    assert needed.workspace == 46 * MIB + int(0.06 * tensors)
    assert taken.total - needed.total == pytest.approx(share * 4 * 999 * 72 * KIB, abs=1)


def test_batches_are_planned_by_need_but_expected_to_take_what_the_process_keeps() -> None:
    rows = rows_of_lengths([300] * 4, sampling_of(max_new_tokens=600))
    needed, taken = (BatchMemory(GPT2, keeps).estimate(4, 300, rows[0].sampling).total for keeps in (False, True))
    assert needed < taken
    for budget, device, expected in ((2 * needed, "cpu", taken), (needed, "cpu", needed), (2 * needed, "cuda", needed)):
        limits = REFERENCE.limits(GPT2, device, int(budget / BUDGET_SHARE) + 1)
        assert batch_bytes(limits, rows) == expected
        assert largest_batch(limits, 300, [rows[0].sampling], 4) == 4


def test_the_total_is_the_sum_of_the_parts() -> None:
    needed = BatchMemory(GPT2).estimate(2, 10, GREEDY)
    tensors = needed.kv_cache + needed.attention_mask + needed.logits + needed.activations
    assert needed.total == tensors + needed.workspace


def test_shared_key_value_heads_shrink_the_cache_alone() -> None:
    shared = Footprint.of_shape(ModelShape(12, 12, 3, 64, 768, 3072, 50257), 4)
    assert shared.cache_bytes(1, 1) == 18 * KIB
    assert shared.prefill == GPT2.prefill


def test_eager_attention_holds_the_scores_of_every_head_twice() -> None:
    eager = Footprint.of_shape(SHAPE, 4, attention="eager")
    few, many = 10, 1000
    assert eager.prefill_bytes(1, few) == GPT2.prefill_bytes(1, few)
    assert eager.prefill_bytes(1, many) == many * 6 * 768 * 4 + many**2 * (2 * 12 * 4 + 4)


@given(
    rows=st.integers(1, 256),
    columns=st.integers(1, 4096),
    max_new_tokens=st.integers(1, 4096),
    footprint=st.sampled_from([GPT2, HALF]),
    options=st.sampled_from([{}, {"num_beams": 4}, {"temperature": 1.0, "top_p": 0.9}, {"repetition_penalty": 1.2}]),
)
def test_more_never_takes_less(
    rows: int, columns: int, max_new_tokens: int, footprint: Footprint, options: dict[str, Any]
) -> None:
    def total(rows: int, columns: int, max_new_tokens: int) -> int:
        return (
            BatchMemory(footprint).estimate(rows, columns, sampling_of(max_new_tokens=max_new_tokens, **options)).total
        )

    least = total(rows, columns, max_new_tokens)
    assert least < total(rows + 1, columns, max_new_tokens)
    assert least < total(rows, columns + 1, max_new_tokens)
    assert least <= total(rows, columns, max_new_tokens + 1)


def test_a_batch_needs_what_its_longest_row_and_its_greediest_kind_need() -> None:
    greedy, sampled = sampling_of(), sampling_of(temperature=1.0, top_p=0.9)
    assert batch_bytes(LIMITS, rows_of_lengths([3, 9, 5], GREEDY)) == BatchMemory(GPT2).estimate(3, 9, GREEDY).total
    assert (
        batch_bytes(LIMITS, rows_of_lengths([3, 9, 5], greedy, sampled))
        == BatchMemory(GPT2).estimate(3, 9, sampled).total
    )


@pytest.mark.parametrize("limits", [LIMITS, SLOTS], ids=["batches", "slots"])
@pytest.mark.parametrize("rows", [1, 2, 7, 63, 64])
def test_the_largest_batch_just_fits(rows: int, limits: BatchLimits) -> None:
    budget = limits.memory.estimate(rows, 100, GREEDY).total
    assert largest_batch(replace(limits, budget_bytes=budget), 100, [GREEDY], 64) == rows
    assert largest_batch(replace(limits, budget_bytes=budget - 1), 100, [GREEDY], 64) == max(1, rows - 1)


# Slots.


def test_slots_hold_whole_pages() -> None:
    needed = SlotMemory(GPT2).estimate(64, 60, sampling_of(max_new_tokens=6))  # 65 columns: three pages of 32
    assert needed.kv_cache == 64 * 3 * PAGE * 72 * KIB


@pytest.mark.parametrize(
    ("footprint", "rows", "wanted"),
    [(GPT2, 64, 3 * 64 * LOGITS), (HALF, 64, 2.5 * 64 * LOGITS), (GPT2, 128, 128 * LOGITS + 32 * MIB)],
)
def test_the_logits_of_slots_leave_holes_as_large_as_themselves(footprint: Footprint, rows: int, wanted: float) -> None:
    assert SlotMemory(replace(footprint, prefill=((0, 0),))).estimate(rows, 8, GREEDY).logits == wanted


def test_a_prefill_of_slots_is_bounded() -> None:
    needed = SlotMemory(GPT2).estimate(64, 100, GREEDY)
    assert prefill_rows(100) == PREFILL_TOKENS // 100 == 10
    scores = 10 * 2 * 12 * 4 * PAGE * 100  # of a page of queries
    assert needed.activations == GPT2.prefill_bytes(10, 100) + scores


def test_attention_in_slots_makes_no_mask_of_pairs_of_columns() -> None:
    eager = Footprint.of_shape(SHAPE, 2, attention="eager")
    needed = SlotMemory(eager).estimate(1, 8000, GREEDY)
    assert needed.attention_mask == 251 * PAGE * 4  # of the pages
    assert needed == SlotMemory(HALF).estimate(1, 8000, GREEDY)


def test_rows_behind_a_long_prefix_hold_its_scores_and_one_layer_of_it_each() -> None:
    with_prefix, without = (SlotMemory(HALF).of_rows([(8, GREEDY)] * 64, prefix) for prefix in (4000, 0))
    scores, layer = 2 * 12 * 2 * PAGE, 2 * 768 * 2
    assert with_prefix.activations - without.activations == 64 * 4000 * (scores + layer)


@pytest.mark.parametrize("is_tied", [True, False])
def test_deciding_a_near_tie_restores_one_weight_after_the_other(is_tied: bool) -> None:
    shape = replace(SHAPE, is_tied=is_tied)
    floats, halves = (
        SlotMemory(Footprint.of_shape(shape, size)).estimate(1, 20, sampling_of(max_new_tokens=1)) for size in (4, 2)
    )
    inside = 768 * 3072 * 4 + GPT2.prefill_bytes(1, 20)
    assert floats.activations == (inside if is_tied else 768 * LOGITS)
    assert halves.activations < 2 * MIB


def test_an_output_weight_is_restored_beside_blocks_that_prefills_could_not_hold() -> None:
    shape = replace(SHAPE, is_tied=False)
    needed = SlotMemory(Footprint.of_shape(shape, 4, attention="eager")).estimate(1, 1000, GREEDY)
    forward = 1005 * 6 * 768 * 4 + 1005**2 * (2 * 12 * 4 + 4)  # with the scores of all pairs
    prefill = 1000 * (22 * 768 + 2 * 12 * PAGE) * 4
    assert needed.activations == forward - prefill + 768 * LOGITS


@pytest.mark.parametrize(
    ("n_embd", "n_layer", "columns", "share"),
    [(192, 12, 100, 0.8), (192, 36, 100, 1.6), (192, 12, 1000, 1.2), (3072, 12, 100, None)],
)
def test_freed_blocks_leave_holes_in_each_layer_up_to_a_limit(
    n_embd: int, n_layer: int, columns: int, share: float | None
) -> None:
    """Prefills of one row, each of a size of its own, leave more."""
    shape = replace(SHAPE, n_embd=n_embd, n_inner=4 * n_embd, n_layer=n_layer)
    needed = SlotMemory(Footprint.of_shape(shape, 4)).estimate(64, columns, sampling_of(max_new_tokens=1))
    prefill = 1000 * (22 * n_embd + 2 * 12 * PAGE) * 4
    wanted = share * prefill if share else 96 * MIB
    assert needed.workspace == pytest.approx(32 * MIB + wanted, abs=1)


def test_rows_with_a_scan_are_prefilled_alone_and_make_their_states_anew() -> None:
    alone = replace(GPT2, prefills_alone=True, cache_row=1000 * KIB)
    together = replace(alone, prefills_alone=False)
    assert [SlotMemory(footprint).rows_at_once(100) for footprint in (alone, together)] == [1, 10]
    needed, more = (SlotMemory(footprint).estimate(64, 100, GREEDY) for footprint in (alone, together))
    assert needed.kv_cache == more.kv_cache
    assert needed.activations < more.activations
    share = 1.5 * (0.4 + 12 / 30)
    prefill = 100 * (22 * 768 + 2 * 12 * PAGE) * 4
    assert needed.workspace == pytest.approx(32 * MIB + share * prefill + 64 * 1000 * KIB, abs=1)


def test_a_prompt_longer_than_a_prefill_comes_alone() -> None:
    assert prefill_rows(PREFILL_TOKENS + 1) == 1


def test_rows_of_many_lengths_take_the_pages_of_each() -> None:
    needed = SlotMemory(GPT2).of_rows([(8, GREEDY), (300, GREEDY), (90, sampling_of(max_new_tokens=40))])
    assert needed.kv_cache == (1 + 10 + 5) * PAGE * 72 * KIB


def test_rows_of_one_length_are_a_filling_like_any_other() -> None:
    assert SlotMemory(GPT2).of_rows([(100, GREEDY)] * 40) == SlotMemory(GPT2).estimate(40, 100, GREEDY)


def test_a_shared_prefix_is_kept_once() -> None:
    alone = SlotMemory(GPT2).of_rows([(8, GREEDY)] * 40)
    shared = SlotMemory(GPT2).of_rows([(8, GREEDY)] * 40, prefix_tokens=100)
    assert shared.kv_cache - alone.kv_cache == 100 * 72 * KIB


@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=20),
    max_new_tokens=st.integers(1, 400),
    options=st.sampled_from([{}, {"temperature": 1.0, "top_p": 0.9}]),
)
def test_one_row_more_never_takes_less(lengths: list[int], max_new_tokens: int, options: dict[str, Any]) -> None:
    sampling = sampling_of(max_new_tokens=max_new_tokens, **options)
    rows = [(length, sampling) for length in sorted(lengths, reverse=True)]
    needs = [SlotMemory(GPT2).of_rows(rows[: number + 1]).total for number in range(len(rows))]
    assert needs == sorted(needs)


# Shapes.


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=48, vocab_size=99),
        GPT2Config(n_embd=64, n_layer=3, n_head=2, tie_word_embeddings=False),
    ],
)
def test_the_weights_of_gpt2_are_counted_exactly(config: PretrainedConfig) -> None:
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    assert num_parameters(ModelShape.from_config(config)) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_weights_of_llama_are_counted_but_for_the_norms(is_tied: bool) -> None:
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=500, tie_word_embeddings=is_tied,
    )  # fmt: skip
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    norms = (2 * 3 + 1) * 64
    assert num_parameters(ModelShape.from_config(config)) + norms == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (GPT2Config(), SHAPE),
        (
            GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=48, vocab_size=99),
            ModelShape(2, 4, 4, 8, 32, 48, 99, n_positions=1024),
        ),
        (ARCHITECTURES["llama"], ModelShape(2, 4, 2, 8, 32, 64, 50257, is_tied=False, is_gated=True)),
        (
            LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=16, intermediate_size=64),
            ModelShape(2, 4, 4, 16, 32, 64, 32000, is_tied=False, is_gated=True),
        ),
        (OPTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, ffn_dim=96, vocab_size=99),
         ModelShape(3, 2, 2, 16, 32, 96, 99)),
        (ARCHITECTURES["gpt_neox"], ModelShape(2, 4, 4, 8, 32, 64, 50257, is_tied=False)),
        (ARCHITECTURES["bloom"], ModelShape(2, 4, 4, 8, 32, 128, 50257)),
    ],
    ids=["gpt2", "n_inner", "grouped-query", "head_dim", "ffn_dim", "gpt_neox", "bloom"],
)  # fmt: skip
def test_a_config_gives_its_shape(config: PretrainedConfig, shape: ModelShape) -> None:
    assert ModelShape.from_config(config) == shape


def test_a_recurrent_model_without_heads_has_a_shape() -> None:
    shape = ModelShape.from_config(MambaConfig(hidden_size=256, num_hidden_layers=3))
    assert (shape.n_layer, shape.n_embd, shape.n_head) == (3, 256, 4)


def test_a_number_for_each_layer_counts_as_its_greatest() -> None:
    config = GPT2Config(n_head=12)
    config.num_key_value_heads = [2, 4, 3]
    assert ModelShape.from_config(config).n_kv_head == 4
