"""Families whose layers keep a state: rows in slots get what each gets alone, whoever left or came beside them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from transformers import (
    BambaConfig,
    FalconH1Config,
    FalconMambaConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    NemotronHConfig,
    OlmoHybridConfig,
    PretrainedConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    Zamba2Config,
    xLSTMConfig,
)

import batchgen
from batchgen.engines import choose_engine, make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.model import Checkpoint, Model
from batchgen.records import Batch
from tests.support.engines import drive, slots_of
from tests.support.models import SHAPE, generate_alone, model_of
from tests.support.rows import encoded

GROUPED = {"num_key_value_heads": 2, **SHAPE}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
CONV = {"layer_types": ["conv", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MOE = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, **EXPERTS}
QUICK: dict[str, PretrainedConfig] = {
    "lfm2": Lfm2Config(conv_bias=True, **CONV, **GROUPED),
    "mamba2": Mamba2Config(num_heads=8, head_dim=8, state_size=16, n_groups=2, chunk_size=16, **SHAPE),
    "qwen3_5": Qwen3_5TextConfig(head_dim=8, **DELTA, **GROUPED),
    "falcon_h1": FalconH1Config(mamba_d_ssm=64, head_dim=8, **MAMBA, **GROUPED),
}
SLOW: dict[str, PretrainedConfig] = {
    "lfm2_moe": Lfm2MoeConfig(num_dense_layers=1, moe_intermediate_size=32, **EXPERTS, **CONV, **GROUPED),
    "mamba": MambaConfig(state_size=8, **SHAPE),
    "mamba_with_biases": MambaConfig(state_size=8, use_bias=True, **SHAPE),
    "falcon_mamba": FalconMambaConfig(state_size=8, **SHAPE),
    "bamba": BambaConfig(attn_layer_indices=[1], **MAMBA, **GROUPED),
    "granite_hybrid": GraniteMoeHybridConfig(
        layer_types=["linear_attention", "full_attention"], num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=32, **MAMBA, **GROUPED,
    ),
    "qwen3_next": Qwen3NextConfig(head_dim=8, **DELTA, **MOE, **GROUPED),
    "qwen3_5_moe": Qwen3_5MoeTextConfig(head_dim=8, **DELTA, **MOE, **GROUPED),
    "olmo_hybrid": OlmoHybridConfig(**{**DELTA, "linear_num_value_heads": 2}, pad_token_id=1, **GROUPED),
    "jamba": JambaConfig(
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8,
        mamba_dt_rank=4, **EXPERTS, **GROUPED,
    ),
    "zamba2": Zamba2Config(
        layers_block_type=["linear_attention", "hybrid"], mamba_d_state=16, mamba_ngroups=1, n_mamba_heads=8,
        mamba_headdim=8, chunk_size=16, num_mem_blocks=1, **SHAPE,
    ),
    "nemotron_h": NemotronHConfig(
        layers_block_type=["linear_attention", "full_attention", "mlp", "moe"], mamba_num_heads=8, mamba_head_dim=8,
        n_groups=1, ssm_state_size=16, chunk_size=16, head_dim=8, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, moe_shared_expert_intermediate_size=32, **{**GROUPED, "num_hidden_layers": 4},
    ),
}  # fmt: skip
FAMILIES = QUICK | SLOW
WITHOUT_ATTENTION = ("mamba", "mamba_with_biases", "falcon_mamba", "mamba2")
TEXT = "the rain in Spain falls mainly on the plain and my dog is very happy to see the green train again"
WORDS = TEXT.split()


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Model:
    return model_of(FAMILIES[request.param], checkpoint, "eager" if request.param in WITHOUT_ATTENTION else "sdpa")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Some shorter than a convolution is wide, some longer than a chunk; every third one begins like the others."""
    source = random.Random(0)
    bodies = [" ".join(source.choices(WORDS, k=length)) for length in (1, 4, 9, 2, 70, 33, 3, 20, 130)]
    return [f"{TEXT} {body}" if row % 3 == 2 else body for row, body in enumerate(bodies)]


@pytest.fixture(scope="module")
def alone(model: Model, prompts: list[str]) -> list[list[int]]:
    return [generate_alone(model, prompt, max_new_tokens=8) for prompt in prompts]


def test_it_has_slots(model: Model) -> None:
    assert isinstance(make_engine(model), ContinuousEngine)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_rows_in_slots_get_what_generate_gives_each_alone(
    model: Model, prompts: list[str], alone: list[list[int]], batch_size: int
) -> None:
    order = random.Random(batch_size).sample(range(len(prompts)), len(prompts))
    results = batchgen.generate(
        [prompts[row] for row in order], model, engine="continuous", max_new_tokens=8, batch_size=batch_size
    )
    assert [list(result.output_ids) for result in results] == [alone[row] for row in order]


# What a step that fails leaves behind, and a row that ends.


@pytest.fixture(scope="module")
def lfm2(checkpoint: Checkpoint) -> Model:
    return model_of(QUICK["lfm2"], checkpoint)


@pytest.mark.parametrize("fails", [lambda number, rows: number == 2, lambda number, rows: number > 1 and rows > 2])
def test_a_step_that_failed_and_is_made_again_changes_no_state_twice(
    lfm2: Model, prompts: list[str], monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], bool]
) -> None:
    wanted = [generate_alone(lfm2, prompt, max_new_tokens=6) for prompt in prompts]
    engine, num_steps = slots_of(lfm2, 5), 0
    forward = engine.slot_model._forward

    def forward_that_fails(batch: Batch) -> object:
        nonlocal num_steps
        logits = forward(batch)
        num_steps += batch.input_ids.shape[1] == 1
        if batch.input_ids.shape[1] == 1 and fails(num_steps, len(batch.input_ids)):
            raise MemoryError
        return logits

    monkeypatch.setattr(engine.slot_model, "_forward", forward_that_fails)
    rows = encoded(prompts, lfm2, max_new_tokens=6)
    for _ in drive(engine, [rows]):
        pass
    assert engine.most_slots < 5
    assert [row.output_ids for row in rows] == wanted


def test_states_go_with_the_last_row(lfm2: Model, prompts: list[str]) -> None:
    engine = slots_of(lfm2, 4)
    engine.add(encoded(prompts, lfm2, max_new_tokens=6))
    engine.step()
    states = engine.slot_model.cache.states
    assert states is not None
    assert states.held_bytes > 0
    while not engine.is_idle:
        engine.step()
    assert states.held_bytes == 0


# Why others have no slots.


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (RecurrentGemmaConfig(), "it keeps its states in its own modules"),
        (MiniMaxConfig(), "it keeps its states in a cache of its own"),
        (RwkvConfig(), "it keeps its states in another form than transformers' caches"),
        (xLSTMConfig(), "it keeps its states in another form than transformers' caches"),
    ],
    ids=["recurrent_gemma", "minimax", "rwkv", "xlstm"],
)
def test_a_family_without_slots_says_why(config: PretrainedConfig, reason: str) -> None:
    assert choose_engine("auto", config) == ("reference", reason)
