"""Families with special attention: windows, soft caps, sinks, latents, layers that share keys and values.

Rows in slots get what each gets alone.
"""

from __future__ import annotations

import random

import pytest
import transformers
from packaging.version import Version

import batchgen
from batchgen.engines import choose_engine, make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.continuous.memory import PAGE
from batchgen.model import Checkpoint, Model
from batchgen.records import EngineOptions, SamplingParams
from tests.support.families import WINDOW, config_of
from tests.support.models import generate_alone, model_of
from tests.support.rows import rows_of_lengths

# The quick suite runs one of each kind.
QUICK = ("mistral", "gemma2", "gpt_oss", "deepseek_v3", "gemma4", "llama4_untuned")
SLOW = ("qwen2", "gemma3", "olmo3", "cohere2", "deepseek_v2", "gemma3n")
ATTENTION = {"gemma2": "eager", "gpt_oss": "eager"}  # torch's fused attention supports neither soft caps nor sinks
SINCE = {"gemma4": "5.23"}  # its trial fails with transformers 5.17, so it runs in `reference` there
TEXT = "the rain in Spain falls mainly on the plain and my dog is very happy to see the green train again"
WORDS = TEXT.split()


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Model:
    if Version(transformers.__version__) < Version(SINCE.get(request.param, "0")):
        pytest.skip(f"{request.param} has slots from transformers {SINCE[request.param]} on")
    return model_of(config_of(request.param), checkpoint, ATTENTION.get(request.param, "sdpa"))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Return prompts within the window, at its edge, and far beyond it; every third one shares its beginning."""
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


def test_windowed_layers_hold_a_window_of_a_long_prompt(checkpoint: Checkpoint) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = transformers.Gemma3TextConfig(
        hidden_size=16, num_hidden_layers=6, num_attention_heads=1, num_key_value_heads=1, head_dim=8,
        layer_types=kinds, intermediate_size=16, vocab_size=50257, sliding_window=256,
    )  # fmt: skip
    engine = make_engine(model_of(config, checkpoint), EngineOptions(share_prefixes=False))
    assert isinstance(engine, ContinuousEngine)
    engine.add(rows_of_lengths([2000], SamplingParams(max_new_tokens=4)))
    engine.step()
    pools = engine.slot_model.cache.pools
    whole = 2000
    windowed, full = (sum(p.num_used * PAGE for p in pools if bool(p.rule.window) is w) for w in (True, False))
    assert full >= whole
    assert windowed < 0.16 * whole
    assert 5 * windowed + full < 0.30 * 6 * whole


def test_scales_that_count_columns_rule_slots_out() -> None:
    reason = "its attention is scaled by the number of columns before a token, including pads"
    assert choose_engine("auto", config_of("llama4")) == ("reference", reason)


def test_a_row_that_grows_over_the_window_goes_on_as_alone(model: Model) -> None:
    [result, _] = batchgen.generate(["My dog is", "The"], model, engine="continuous", max_new_tokens=WINDOW + 9)
    assert list(result.output_ids) == generate_alone(model, "My dog is", max_new_tokens=WINDOW + 9)
