"""A small config.json of each family that is read without transformers."""

from __future__ import annotations

import json
from typing import Any

from batchgen.model.find import BUNDLED_FOLDER

ROTARY = {
    "vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128, "eos_token_id": [3, 4],
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": json.loads((BUNDLED_FOLDER / "config.json").read_text(encoding="utf-8")),
    "llama": ROTARY | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"},
    "qwen2": ROTARY
    | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 64},
    "qwen3": ROTARY
    | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2, "head_dim": 16}
    | {"tie_word_embeddings": True, "eos_token_id": None},
}
