"""The memory footprint of a model, computed without weights, is that of a real forward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RwkvConfig,
)

import batchgen.model.probe
from batchgen.engines.continuous.memory import PAGE, SlotMemory
from batchgen.model.probe import _fit, _Trial, probe_footprint
from batchgen.model.shape import Footprint, ModelShape
from batchgen.records import SamplingParams
from tests.support.models import ARCHITECTURES

GROUPED = LlamaConfig(
    hidden_size=96, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2, intermediate_size=256,
    vocab_size=1000, max_position_embeddings=1024,
)  # fmt: skip


def fit(config: PretrainedConfig, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Footprint:
    formula = Footprint.of_shape(ModelShape.from_config(config), dtype.itemsize, attention)
    return _fit(_Trial(config, dtype, attention), formula)


def live_bytes(config: PretrainedConfig, rows: int, columns: int) -> int:
    """Return the peak bytes of live tensors in a real forward that fills a cache, from the allocator's own events."""
    network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.ones(rows, columns, dtype=torch.int64)
    mask = ids.clone()
    mask[0, 0] = 0
    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record,
    ):
        network(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=True, logits_to_keep=1)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fitting_gpt2_gives_its_formulas(dtype: torch.dtype) -> None:
    config = GPT2Config(n_layer=3)
    fitted, formula = fit(config, dtype), probe_footprint(config, dtype)
    assert fitted.weights == formula.weights
    assert fitted.cache_column == formula.cache_column
    for columns in (64, 300, 1024):
        assert fitted.prefill_bytes(1, columns) == pytest.approx(formula.prefill_bytes(1, columns), rel=0.01)
    assert fitted.decode_column == pytest.approx(formula.decode_column, rel=0.05)


@pytest.mark.parametrize(
    "config",
    [
        GROUPED,
        Qwen3Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            intermediate_size=128, vocab_size=500, max_position_embeddings=512,
        ),
        GPT2Config(n_embd=64, n_layer=3, n_head=4, n_inner=96, vocab_size=500),
    ],
    ids=["llama", "qwen3", "gpt2"],
)  # fmt: skip
@pytest.mark.parametrize(("rows", "columns"), [(1, 400), (8, 200), (32, 64)])
def test_a_forward_takes_what_was_fitted(config: PretrainedConfig, rows: int, columns: int) -> None:
    footprint = probe_footprint(config, torch.float32)
    mask = rows * columns**2
    predicted = footprint.cache_bytes(rows, columns) + footprint.prefill_bytes(rows, columns) + mask
    live = live_bytes(config, rows, columns)
    # The attention kernel has its own scratch memory, a few hundred KiB per thread.
    scratch = 512 * 1024
    assert live - scratch <= predicted <= 1.1 * live + scratch


def test_grouped_heads_cache_less() -> None:
    assert probe_footprint(GROUPED, torch.float32).cache_column == 2 * 5 * 2 * 16 * 4


@pytest.mark.parametrize("gives_numbers", [True, False])
def test_layers_with_a_window_keep_what_it_shows(monkeypatch: pytest.MonkeyPatch, gives_numbers: bool) -> None:
    config = Gemma3TextConfig(
        num_hidden_layers=4, sliding_window=48, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64, vocab_size=500, layer_types=["sliding_attention"] * 3 + ["full_attention"],
    )  # fmt: skip
    if not gives_numbers:
        monkeypatch.setattr(batchgen.model.probe, "_fit", lambda trial, formula: formula)
    monkeypatch.setattr(batchgen.model.probe, "_known", {})
    footprint, layer = probe_footprint(config, torch.float32), 2 * 2 * 8 * 4
    assert footprint.windows == ((None, layer), (48, 3 * layer))
    assert footprint.cache_bytes(2, 1000) == 2 * (1000 + 3 * 48) * layer
    held = SlotMemory(footprint).of_rows([(1000, SamplingParams(max_new_tokens=1))])
    assert held.kv_cache == (32 * layer + 3 * 3 * layer) * PAGE


def test_weights_are_counted_exactly() -> None:
    network = AutoModelForCausalLM.from_config(GROUPED)
    assert probe_footprint(GROUPED, torch.float32).weights == sum(weight.nbytes for weight in network.parameters())
    assert (
        probe_footprint(GROUPED, torch.bfloat16).weights == sum(weight.nbytes for weight in network.parameters()) // 2
    )


@pytest.mark.parametrize(("is_tied", "output"), [(True, 0), (False, 1000 * 96)])
def test_the_largest_weight_is_that_of_layers_packed_as_one(is_tied: bool, output: int) -> None:
    config = copy.deepcopy(GROUPED)
    config.tie_word_embeddings = is_tied
    formula = Footprint.of_shape(ModelShape.from_config(config), 4)
    for footprint in (formula, probe_footprint(config, torch.float32)):
        assert (footprint.largest_weight, footprint.output_weight) == (2 * 256 * 96 * 4, output * 4)
    halves = probe_footprint(config, torch.bfloat16)
    assert (halves.largest_weight, halves.output_weight) == (2 * 256 * 96 * 2, output * 2)


def test_eager_attention_takes_its_scores() -> None:
    config = ARCHITECTURES["gpt2"]
    fitted = fit(config, attention="eager")
    formula = Footprint.of_shape(ModelShape.from_config(config), 4, "eager")
    assert fitted.prefill_bytes(1, 128) == pytest.approx(formula.prefill_bytes(1, 128), rel=0.1)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_a_footprint(name: str) -> None:
    footprint = probe_footprint(ARCHITECTURES[name], torch.float32)
    assert footprint.weights > 0
    assert footprint.cache_bytes(1, 10) > 0
    assert footprint.prefill_bytes(1, 10) > 0


@pytest.mark.parametrize("model_type", ["lfm2", "mamba"])
def test_states_are_counted_per_row(model_type: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64, "vocab_size": 500}
    if model_type == "lfm2":
        kinds = ["conv", "full_attention", "conv"]
        config: PretrainedConfig = Lfm2Config(
            num_attention_heads=4, num_key_value_heads=2, layer_types=kinds, pad_token_id=0, **sizes
        )
        wanted = (2 * 3 * 32 * 4, 2 * 2 * 8 * 4)  # two layers' last 3 inputs; one layer's keys and values
    else:
        config, wanted = MambaConfig(state_size=8, **sizes), (3 * 64 * (4 + 8) * 4, 0)
    footprint = probe_footprint(config, torch.float32)
    assert (footprint.cache_row, footprint.cache_column) == wanted
    held = SlotMemory(footprint).of_rows([(PAGE, SamplingParams(max_new_tokens=1))] * 5)
    assert held.kv_cache == 5 * (wanted[0] + PAGE * wanted[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_counted(dtype: torch.dtype) -> None:
    config = Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=500,
        intermediate_size=64, moe_intermediate_size=32, num_experts=6, num_experts_per_tok=2,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    footprint = probe_footprint(config, dtype)
    assert footprint.weights == sum(weight.nbytes for weight in network.parameters())
    assert footprint.cache_column == 2 * 2 * 2 * 8 * dtype.itemsize


def test_states_outside_of_caches_are_counted_in_a_second() -> None:
    config = RwkvConfig(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, vocab_size=500)
    footprint = probe_footprint(config, torch.float32)
    assert (footprint.cache_row, footprint.cache_column) == (2 * 5 * 32 * 4, 0)


def test_states_beside_experts_are_counted_in_the_dtype_they_have() -> None:
    config = Qwen3NextConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=500,
        layer_types=["linear_attention", "full_attention"], linear_num_key_heads=4, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )  # fmt: skip
    recurrent, convolution = 4 * 8 * 8, 3 * 4 * 8 * 4  # a convolution keeps its last 4 inputs
    assert probe_footprint(config, torch.float32).cache_row == 4 * (recurrent + convolution)


def test_a_model_that_cannot_be_tried_has_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("meta tensors have no numbers")

    monkeypatch.setattr(batchgen.model.probe, "_fit", fail)
    monkeypatch.setattr(batchgen.model.probe, "_known", {})
    formula = Footprint.of_shape(ModelShape.from_config(GROUPED), 4, "sdpa")
    assert probe_footprint(GROUPED, torch.float32) == formula
