from __future__ import annotations

from typing import Any

import pytest
from conftest import ARCHITECTURES
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig, MambaConfig, OPTConfig, PretrainedConfig

from batchgen.memory import ModelShape, estimate, kv_cache_bytes
from batchgen.records import SamplingParams

GPT2 = ModelShape(n_layer=12, n_head=12, n_kv_head=12, head_dim=64, n_embd=768, n_inner=3072, vocab_size=50257)
GREEDY = SamplingParams(max_new_tokens=6)
KIB = 1024


def sampling_of(**changes: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=6, **changes)


@pytest.mark.parametrize(("element_bytes", "kibibytes"), [(4, 72), (2, 36)])
def test_a_token_of_gpt2_takes_this_much_cache(element_bytes: int, kibibytes: int) -> None:
    assert kv_cache_bytes(GPT2, 1, 1, element_bytes) == kibibytes * KIB
    assert kv_cache_bytes(GPT2, 3, 5, element_bytes) == 15 * kibibytes * KIB


def test_the_cache_grows_with_its_layers_one_at_a_time() -> None:
    # Two rows of 10 + 6 columns; one of 12 layers has its keys or its values twice while they are copied: 1 + 1/24.
    assert estimate(GPT2, 2, 10, GREEDY, 4).kv_cache == 2 * 16 * 75 * KIB


def test_prefill_holds_22_vectors_a_token_and_the_mask() -> None:
    assert estimate(GPT2, 2, 10, GREEDY, 4).activations == 2 * 10 * 768 * 4 * 22 + 2 * 10**2
    assert estimate(GPT2, 2, 10, GREEDY, 2).activations == 2 * 10 * 768 * 2 * 22 + 2 * 10**2


def test_prefill_of_512_tokens_peaks_where_it_was_measured() -> None:
    needed = estimate(GPT2, 8, 64, GREEDY, 4).activations + kv_cache_bytes(GPT2, 8, 64, 4)
    assert needed / KIB**2 == pytest.approx(69.14, rel=0.01)


def test_greedy_takes_three_times_the_logits() -> None:
    assert estimate(GPT2, 2, 10, GREEDY, 4).logits == 3 * 2 * 50257 * 4


@pytest.mark.parametrize(
    ("options", "measured"), [({}, 4.0), ({"top_k": 40}, 5.2), ({"min_p": 0.1}, 4.0), ({"top_p": 0.9}, 9.5)]
)
def test_sampling_takes_at_least_what_was_measured(options: dict[str, Any], measured: float) -> None:
    assert estimate(GPT2, 2, 10, sampling_of(temperature=1.0, **options), 4).logits >= measured * 2 * 50257 * 4


def test_a_repetition_penalty_takes_a_byte_a_token_of_the_vocabulary() -> None:
    penalty = estimate(GPT2, 2, 10, sampling_of(repetition_penalty=1.2), 4)
    assert penalty.logits - estimate(GPT2, 2, 10, GREEDY, 4).logits == 2 * 50257


def test_beams_are_rows_whose_cache_exists_twice() -> None:
    beams, rows = estimate(GPT2, 2, 10, sampling_of(num_beams=3), 4), estimate(GPT2, 6, 10, GREEDY, 4)
    assert beams.kv_cache == 2 * kv_cache_bytes(GPT2, 6, 16, 4)
    assert (beams.logits, beams.activations) == (rows.logits, rows.activations)


def test_the_total_is_the_sum_of_the_parts() -> None:
    needed = estimate(GPT2, 2, 10, GREEDY, 4)
    assert needed.weights == 0
    assert needed.total == needed.kv_cache + needed.logits + needed.activations


def test_shared_key_value_heads_shrink_the_cache_alone() -> None:
    shared = ModelShape(n_layer=12, n_head=12, n_kv_head=3, head_dim=64, n_embd=768, n_inner=3072, vocab_size=50257)
    assert kv_cache_bytes(shared, 1, 1, 4) == 18 * KIB
    assert estimate(shared, 2, 10, GREEDY, 4).activations == estimate(GPT2, 2, 10, GREEDY, 4).activations


@given(
    rows=st.integers(1, 256),
    columns=st.integers(1, 4096),
    max_new_tokens=st.integers(1, 4096),
    element_bytes=st.sampled_from([2, 4]),
    options=st.sampled_from([{}, {"num_beams": 4}, {"temperature": 1.0, "top_p": 0.9}, {"repetition_penalty": 1.2}]),
)
def test_more_never_takes_less(
    rows: int, columns: int, max_new_tokens: int, element_bytes: int, options: dict[str, Any]
) -> None:
    def total(rows: int, columns: int, max_new_tokens: int) -> int:
        params = SamplingParams(max_new_tokens=max_new_tokens, **options)
        return estimate(GPT2, rows, columns, params, element_bytes).total

    least = total(rows, columns, max_new_tokens)
    assert least < total(rows + 1, columns, max_new_tokens)
    assert least < total(rows, columns + 1, max_new_tokens)
    assert least < total(rows, columns, max_new_tokens + 1)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (GPT2Config(), GPT2),
        (GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=48, vocab_size=99), ModelShape(2, 4, 4, 8, 32, 48, 99)),
        (ARCHITECTURES["llama"], ModelShape(2, 4, 2, 8, 32, 64, 50257)),
        (
            LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=16, intermediate_size=64),
            ModelShape(2, 4, 4, 16, 32, 64, 32000),
        ),
        (OPTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, ffn_dim=96, vocab_size=99),
         ModelShape(3, 2, 2, 16, 32, 96, 99)),
        (ARCHITECTURES["gpt_neox"], ModelShape(2, 4, 4, 8, 32, 64, 50257)),
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
