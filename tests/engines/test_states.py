"""Families whose layers keep a state: rows in slots get what each gets alone, whoever left or came beside them."""

from __future__ import annotations

import random

import pytest
from transformers import Lfm2Config, PretrainedConfig

import batchgen
from batchgen.engines import make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.model import Checkpoint, Model
from tests.support.models import SHAPE, generate_alone, model_of

FAMILIES: dict[str, PretrainedConfig] = {
    "lfm2": Lfm2Config(num_key_value_heads=2, layer_types=["conv", "full_attention"], **SHAPE),
    "lfm2_bias": Lfm2Config(num_key_value_heads=2, layer_types=["conv", "full_attention"], conv_bias=True, **SHAPE),
}
TEXT = "the rain in Spain falls mainly on the plain and my dog is very happy to see the green train again"
WORDS = TEXT.split()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Model:
    return model_of(FAMILIES[request.param], checkpoint)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Some shorter than a convolution is wide; every third one begins like the others."""
    source = random.Random(0)
    bodies = [" ".join(source.choices(WORDS, k=length)) for length in (1, 4, 9, 2, 70, 33, 3, 20, 130)]
    return [f"{TEXT} {body}" if row % 3 == 2 else body for row, body in enumerate(bodies)]


@pytest.fixture(scope="module")
def alone(model: Model, prompts: list[str]) -> list[list[int]]:
    return [generate_alone(model, prompt, max_new_tokens=12) for prompt in prompts]


def test_it_has_slots(model: Model) -> None:
    assert isinstance(make_engine(model), ContinuousEngine)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_rows_in_slots_get_what_generate_gives_each_alone(
    model: Model, prompts: list[str], alone: list[list[int]], batch_size: int
) -> None:
    order = random.Random(batch_size).sample(range(len(prompts)), len(prompts))
    results = batchgen.generate(
        [prompts[row] for row in order], model, engine="continuous", max_new_tokens=12, batch_size=batch_size
    )
    assert [list(result.output_ids) for result in results] == [alone[row] for row in order]
