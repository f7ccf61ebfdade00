"""Tiny configs with LongRoPE of families that do, at the limit, different things."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, Phi3Config, PhimoeConfig, PretrainedConfig

from tests.support.families import PAD, SHAPE

LIMIT = 40  # tokens; more than a page, so that rows on both sides share openings
ROPE = {
    "rope_type": "longrope", "rope_theta": 2e4, "original_max_position_embeddings": LIMIT, "factor": 12.0,
    "short_factor": [1.0 + i / 16 for i in range(4)], "long_factor": [2.0 + 3 * i for i in range(4)],
}  # fmt: skip
SCALED = {**ROPE, "short_mscale": 1.0, "long_mscale": 1.2}
TINY: dict[str, Any] = {**SHAPE, **PAD, "num_key_value_heads": 2, "max_position_embeddings": 256}
TINY["original_max_position_embeddings"] = LIMIT
# Of a row that crosses the limit, Phi-3 and Phi-3.5 MoE compute the keys anew; Llama keeps them.
CONFIGS: dict[str, PretrainedConfig] = {
    "phi3": Phi3Config(rope_parameters=ROPE, sliding_window=None, **TINY),
    "phimoe": PhimoeConfig(
        rope_parameters=SCALED, sliding_window=None, num_local_experts=2, num_experts_per_tok=1, **TINY
    ),
    "llama": LlamaConfig(rope_parameters=ROPE, **TINY),
}
