"""Families whose layers keep a state: rows in slots get what each gets alone, whatever rows left or joined."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import Cache

import batchgen
from batchgen.engines import choose_engine, make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.model import Checkpoint, Model
from batchgen.records import Batch
from tests.support.engines import drive, slots_of
from tests.support.families import config_of
from tests.support.models import generate_alone, model_of
from tests.support.rows import encoded

pytestmark = pytest.mark.skipif(
    not hasattr(Cache, "get_conv_state"),
    reason="the installed transformers keeps states in an older form: such models run in reference",
)
QUICK = ("lfm2", "mamba2", "qwen3_5", "falcon_h1")
SLOW = (
    "lfm2_moe", "mamba", "mamba_with_biases", "falcon_mamba", "bamba", "granite_hybrid", "qwen3_next", "qwen3_5_moe",
    "olmo_hybrid", "jamba", "zamba2", "nemotron_h",
)  # fmt: skip
WITHOUT_ATTENTION = ("mamba", "mamba_with_biases", "falcon_mamba", "mamba2")
TEXT = "the rain in Spain falls mainly on the plain and my dog is very happy to see the green train again"
WORDS = TEXT.split()


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Model:
    return model_of(config_of(request.param), checkpoint, "eager" if request.param in WITHOUT_ATTENTION else "sdpa")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Return prompts shorter than a convolution and longer than a chunk; every third one shares its beginning."""
    source = random.Random(0)
    bodies = [" ".join(source.choices(WORDS, k=length)) for length in (1, 4, 9, 2, 70, 33, 3, 20, 130)]
    return [f"{TEXT} {body}" if row % 3 == 2 else body for row, body in enumerate(bodies)]


@pytest.fixture(scope="module")
def alone(model: Model, prompts: list[str]) -> list[list[int]]:
    return [generate_alone(model, prompt, max_new_tokens=8) for prompt in prompts]


def test_it_has_slots(model: Model) -> None:
    assert isinstance(make_engine(model), ContinuousEngine)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_it_has_slots_in_16_bits(name: str, checkpoint: Checkpoint) -> None:
    """Their layers read the weights of their projections, or the dtype of the logits' weights."""
    loaded = model_of(config_of(name), checkpoint, "eager")
    model = replace(loaded, network=loaded.network.bfloat16(), dtype=torch.bfloat16)
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


# What a failed step leaves, and what a finished row leaves.


@pytest.fixture(scope="module")
def lfm2(checkpoint: Checkpoint) -> Model:
    return model_of(config_of("lfm2"), checkpoint)


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
    ("name", "reason"),
    [
        ("recurrent_gemma", "it keeps its states in its own modules"),
        ("minimax", "it keeps its states in a cache of its own"),
        ("rwkv", "it keeps its states in another form than transformers' caches"),
        ("xlstm", "it keeps its states in another form than transformers' caches"),
        ("openai-gpt", "it has no KV cache"),
    ],
)
def test_a_family_without_slots_says_why(name: str, reason: str) -> None:
    assert choose_engine("auto", config_of(name)) == ("reference", reason)
