"""Families with attention of their own: windows, bounds, sinks, latents, layers that share keys and values.

Rows in slots get what each gets alone.
"""

from __future__ import annotations

import random

import pytest
from transformers import (
    Cohere2Config,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GptOssConfig,
    Llama4TextConfig,
    MistralConfig,
    Olmo3Config,
    PretrainedConfig,
    Qwen2Config,
)

import batchgen
from batchgen.engines import choose_engine, make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.model import Checkpoint, Model
from tests.support.models import SHAPE, generate_alone, model_of

WINDOW = 40  # columns: more than a page, so that pages are given back before a row ends
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW, "num_key_value_heads": 2}
ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
FAMILIES: dict[str, PretrainedConfig] = {
    "mistral": MistralConfig(num_key_value_heads=2, sliding_window=WINDOW, **SHAPE),
    "qwen2": Qwen2Config(
        num_key_value_heads=2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, **SHAPE
    ),
    # Bounds as low as these change which token is the best.
    "gemma2": Gemma2Config(
        head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=0.5, final_logit_softcapping=5.0, **MIXED, **SHAPE
    ),
    "gemma3": Gemma3TextConfig(head_dim=8, query_pre_attn_scalar=8, **MIXED, **SHAPE),
    "olmo3": Olmo3Config(**MIXED, **SHAPE),
    "cohere2": Cohere2Config(**MIXED, **SHAPE),
    "gpt_oss": GptOssConfig(
        head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_parameters=ROTARY, **MIXED, **SHAPE
    ),
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 32}
SHARED = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 50257,
    "hidden_size_per_layer_input": 8,
    "head_dim": 8,
    "num_key_value_heads": 2,
}
FOUR = {**SHAPE, "num_hidden_layers": 4}
FAMILIES |= {
    "deepseek_v2": DeepseekV2Config(num_key_value_heads=4, topk_method="greedy", **LATENT, **EXPERTS, **SHAPE),
    "deepseek_v3": DeepseekV3Config(num_key_value_heads=4, n_group=1, topk_group=1, **LATENT, **EXPERTS, **SHAPE),
    "gemma3n": Gemma3nTextConfig(
        laurel_rank=4, activation_sparsity_pattern=[0.0] * 4, **SHARED, **{**FOUR, "intermediate_size": [64] * 4}
    ),
    "gemma4": Gemma4TextConfig(global_head_dim=16, **SHARED, **FOUR),
    "llama4": Llama4TextConfig(
        head_dim=8, attention_chunk_size=WINDOW, no_rope_layers=[1, 0], num_local_experts=2, intermediate_size_mlp=64,
        attn_temperature_tuning=False, num_key_value_heads=2, **SHAPE
    ),
}  # fmt: skip
# One of each kind runs in the quick suite.
SLOW = ("qwen2", "gemma3", "olmo3", "cohere2", "deepseek_v2", "gemma3n")
ATTENTION = {"gemma2": "eager", "gpt_oss": "eager"}  # torch's fused one has neither bounds nor sinks
TEXT = "the rain in Spain falls mainly on the plain and my dog is very happy to see the green train again"
WORDS = TEXT.split()


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES]
)
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Model:
    return model_of(FAMILIES[request.param], checkpoint, ATTENTION.get(request.param, "sdpa"))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Some within the window, some at its edge, some far over it; every third one begins like the others."""
    source = random.Random(0)
    lengths = [1, 4, WINDOW - 8, WINDOW, WINDOW + 1, 3 * WINDOW, 2, 20, 2 * WINDOW]
    bodies = [" ".join(source.choices(WORDS, k=length)) for length in lengths]
    return [f"{TEXT} {body}" if row % 3 == 0 else body for row, body in enumerate(bodies)]


@pytest.fixture(scope="module")
def alone(model: Model, prompts: list[str]) -> list[list[int]]:
    return [generate_alone(model, prompt, max_new_tokens=12) for prompt in prompts]


def test_it_has_slots(model: Model) -> None:
    assert isinstance(make_engine(model), ContinuousEngine)


@pytest.mark.parametrize(("batch_size", "share_prefixes"), [(1, True), (4, False), (9, True)])
def test_rows_in_slots_get_what_generate_gives_each_alone(
    model: Model, prompts: list[str], alone: list[list[int]], batch_size: int, share_prefixes: bool
) -> None:
    order = random.Random(batch_size).sample(range(len(prompts)), len(prompts))
    results = batchgen.generate(
        [prompts[row] for row in order],
        model,
        engine="continuous",
        max_new_tokens=12,
        batch_size=batch_size,
        share_prefixes=share_prefixes,
    )
    assert [list(result.output_ids) for result in results] == [alone[row] for row in order]


def test_scales_that_count_columns_rule_slots_out() -> None:
    reason = "its attention is scaled by the number of columns before a token, including pads"
    assert choose_engine("auto", Llama4TextConfig()) == ("reference", reason)


def test_a_row_that_grows_over_the_window_goes_on_as_alone(model: Model) -> None:
    [result, _] = batchgen.generate(["My dog is", "The"], model, engine="continuous", max_new_tokens=WINDOW + 9)
    assert list(result.output_ids) == generate_alone(model, "My dog is", max_new_tokens=WINDOW + 9)
