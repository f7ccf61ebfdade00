"""A config that is read without transformers has the values that transformers gives it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from batchgen.model.config_view import ARCHITECTURES, ConfigView, read_config_view, view_of
from batchgen.model.private import supports_attention_backend, supports_sdpa
from batchgen.model.shape import ModelShape
from tests.support.configs import CONFIGS

OTHERWISE = {"dtype", "head_dim", "intermediate_size", "rope_parameters"}  # compared by their effect
CHANGES = [
    {},
    {"tie_word_embeddings": True},
    {"eos_token_id": 7},
    {"dtype": "float16"},
    {"n_inner": 100, "intermediate_size": 100},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_view_has_transformers_values(model_type: str, change: dict[str, Any], tmp_path: Path) -> None:
    given = {key: value for key, value in CONFIGS[model_type].items() if not (change and key == "torch_dtype")}
    (tmp_path / "config.json").write_text(json.dumps(given | change), encoding="utf-8")
    view, full = read_config_view(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert view is not None
    assert ModelShape.from_config(view) == ModelShape.from_config(full)
    for field in {field.name for field in fields(ConfigView)} - OTHERWISE:
        assert getattr(view, field) == getattr(full, field, None), field
    assert view.dtype == (str(full.dtype).removeprefix("torch.") if full.dtype else None)
    own = getattr(full, "rope_parameters", None) or {}
    assert view.rope_parameters.get("rope_type") == own.get("rope_type")
    assert (getattr(full, "layer_types", None) or ["full_attention"])[0] == "full_attention"


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_takes_an_attention_function_by_name(family: str) -> None:
    network = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.for_model(family))]
    assert network.__name__ == ARCHITECTURES[family]
    assert supports_sdpa(network)
    assert supports_attention_backend(network)


ODD: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"model_type": "mamba"}),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}),
    ("llama", {"architectures": None}),
    ("llama", {"auto_map": {"AutoConfig": "a.B"}}),
    ("llama", {"quantization_config": {"bits": 4}}),
    ("llama", {"hidden_size": 33}),
    ("llama", {"hidden_size": "32"}),
    ("llama", {"num_hidden_layers": 0}),
    ("llama", {"num_attention_heads": True}),
    ("llama", {"vocab_size": None}),
    ("llama", {"eos_token_id": "</s>"}),
    ("llama", {"dtype": "float32"}),
    ("llama", {"rope_scaling": {"type": "longrope"}}),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
    ("qwen2", {"use_sliding_window": True}),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2}),
    ("qwen3", {"head_dim": None}),
    ("gpt2", {"hidden_size": 64}),
    ("gpt2", {"dtype": "float8"}),
    ("gpt2", {"tie_word_embeddings": "no"}),
]


@pytest.mark.parametrize(("model_type", "change"), ODD, ids=str)
def test_an_odd_config_is_left_to_transformers(model_type: str, change: dict[str, Any]) -> None:
    assert view_of(CONFIGS[model_type] | change) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_what_is_no_config_is_left_to_transformers(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert read_config_view(tmp_path) is None
