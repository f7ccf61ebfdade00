"""The config fields that are needed before the weights, read without transformers where the result is certain.

Covers a few families, and only a config.json in which every such field is as expected. Anything unusual is left to
transformers, which knows all families and their defaults and reports what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The only accepted architecture of each family.
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# GPT-2's own names for fields that other families share; transformers reads both.
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
SIZES = ("vocab_size", *GPT2_NAMES)
# Keys that change what a config means, or whether it may be read.
ODD = {"auto_map", "text_config", "quantization_config", "layer_types", "is_encoder_decoder", "use_sliding_window"}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")  # where a row's positions do not depend on other rows
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ConfigView:
    """Stands in for a transformers config until the network is built; names and values are the same."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None
    head_dim: int | None
    intermediate_size: int | None
    eos_token_id: int | list[int] | None
    tie_word_embeddings: bool
    hidden_act: str | None
    dtype: str | None
    tokenizer_class: str | None
    rope_parameters: dict[str, str]  # only their type, which tells whether rows affect each other; {} for GPT-2

    @property
    def n_positions(self) -> int | None:
        """The number of GPT-2's position embeddings; None for rotary families, which have none."""
        return self.max_position_embeddings if self.model_type == "gpt2" else None

    def get_text_config(self) -> ConfigView:
        return self


def read_config_view(folder: Path) -> ConfigView | None:
    """The view of a folder's config.json; None if only transformers can read it reliably."""
    try:
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return view_of(given) if isinstance(given, dict) else None


def view_of(given: Mapping[str, Any]) -> ConfigView | None:
    """The view of a parsed config.json; None if only transformers can read it reliably."""
    family = given.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        return None
    if given.get("architectures") != [ARCHITECTURES[family]]:
        return None
    if any(given.get(name) for name in ODD) or not _sizes_are_there(given, family):
        return None
    if not _is_eos(given.get("eos_token_id", "")) or not isinstance(given.get("tie_word_embeddings", True), bool):
        return None
    dtypes = {given[name] for name in ("dtype", "torch_dtype") if isinstance(given.get(name), str)}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return None
    if (rope_type := _rope_type(given)) not in ROPE_TYPES:
        return None
    is_gpt2 = family == "gpt2"
    names = GPT2_NAMES if is_gpt2 else dict(zip(GPT2_NAMES, GPT2_NAMES, strict=True))
    return ConfigView(
        model_type=family,
        vocab_size=given["vocab_size"],
        **{name: given[own] for name, own in names.items()},
        num_key_value_heads=None if is_gpt2 else given.get("num_key_value_heads") or given["num_attention_heads"],
        head_dim=given.get("head_dim"),
        intermediate_size=given.get("n_inner" if is_gpt2 else "intermediate_size"),
        eos_token_id=given["eos_token_id"],
        tie_word_embeddings=given.get("tie_word_embeddings", is_gpt2),
        hidden_act=None if is_gpt2 else given.get("hidden_act", "silu"),
        dtype=next(iter(dtypes), None),
        tokenizer_class=given.get("tokenizer_class"),
        rope_parameters={} if is_gpt2 else {"rope_type": rope_type},
    )


def _sizes_are_there(given: Mapping[str, Any], family: str) -> bool:
    """Whether the config has all sizes under the family's own names, and they fit each other."""
    if family == "gpt2":
        wanted, odd = ["vocab_size", *GPT2_NAMES.values()], [*GPT2_NAMES, "head_dim", "num_key_value_heads"]
        maybe = ["n_inner"]
    else:
        wanted, odd, maybe = [*SIZES, "intermediate_size"], [], ["num_key_value_heads", "head_dim"]
    # These families have default values of their own for these fields.
    wanted += {"qwen2": ["num_key_value_heads"], "qwen3": ["num_key_value_heads", "head_dim"]}.get(family, [])
    if any(name in given for name in odd) or not all(_is_size(given.get(name)) for name in wanted):
        return False
    if not all(given.get(name) is None or _is_size(given[name]) for name in maybe):
        return False
    hidden, heads = ("n_embd", "n_head") if family == "gpt2" else ("hidden_size", "num_attention_heads")
    return bool(given[hidden] % given[heads] == 0)


def _rope_type(given: Mapping[str, Any]) -> Any:
    """The scaling type of rotary positions, from the new key or the old one; None if the entry is malformed."""
    scaling = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        return None
    return scaling.get("rope_type", scaling.get("type", "default"))


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _is_eos(value: object) -> bool:
    ids = value if isinstance(value, list) else [value]
    return value is None or all(type(item) is int for item in ids)
