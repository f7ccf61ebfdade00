"""Tiny random configs of decoder-only families of transformers: one list for the tests and for docs/models.md.

Each has the vocabulary of the bundled tokenizer, and the special features of its family in small: windows, soft caps,
latents, experts, states. A family that the installed transformers lacks has no config.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

EOS = 50256
SMALL: dict[str, Any] = {"vocab_size": 50257, "bos_token_id": EOS, "eos_token_id": EOS}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **SMALL}
WINDOW = 40  # columns: more than a page, so that pages are freed before a row ends
GROUPED = {"num_key_value_heads": 2, **SHAPE}
EIGHT = {"head_dim": 8, **GROUPED}
FOUR = {"num_hidden_layers": 4}
PAD = {"pad_token_id": EOS}  # if a family's own id is outside this vocabulary
ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
SHARED = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 50257,
    "hidden_size_per_layer_input": 8,
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 32}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MOE = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, **EXPERTS}
CONV = {"layer_types": ["conv", "full_attention"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    **LINEAR,
}  # fmt: skip
CHUNKED = {
    "attention_chunk_size": WINDOW, "no_rope_layers": [1, 0], "num_local_experts": 2, "intermediate_size_mlp": 64,
    **EIGHT,
}  # fmt: skip

# By the name of a test: transformers' name of the family (if it is not the same), and its options.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    # Full attention, with learned, rotary or linearly biased positions.
    "gpt2": ("", SHAPE),
    "gpt_bigcode": ("", SHAPE),
    "gpt_neo": ("", {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW, **SHAPE}),
    "gpt_neox": ("", SHAPE),
    "gpt_neox_japanese": ("", SHAPE),
    "gptj": ("", {"rotary_dim": 4, **SHAPE}),
    "codegen": ("", {"rotary_dim": 4, **SHAPE}),
    "openai-gpt": ("", SHAPE),
    "opt": ("", {"ffn_dim": 64, "word_embed_proj_dim": 32, **SHAPE}),
    "xglm": ("", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, **SMALL}),
    "biogpt": ("", SHAPE),
    "bloom": ("", SHAPE),
    "mpt": ("", {"d_model": 32, "n_layers": 2, "n_heads": 4, **SMALL}),
    "falcon": ("", SHAPE),
    "falcon_alibi": ("falcon", {"alibi": True, **SHAPE}),
    "persimmon": ("", SHAPE),
    "phi": ("", SHAPE),
    "phi3": ("", {**PAD, **GROUPED}),
    "phi3_longrope": (
        "phi3",
        {
            "max_position_embeddings": 512, "original_max_position_embeddings": WINDOW,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            **PAD, **GROUPED,
        },
    ),
    "stablelm": ("", GROUPED),
    "llama": ("", GROUPED),
    "mistral": ("", {"sliding_window": WINDOW, **GROUPED}),
    "ministral": ("", {**MIXED, **EIGHT}),
    "ministral3": ("", EIGHT),
    "qwen2": ("", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, **GROUPED}),
    "qwen3": ("", EIGHT),
    "gemma": ("", EIGHT),
    # Caps this low change which token is the best.
    "gemma2": (
        "",
        {
            "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 5.0, **MIXED, **EIGHT,
        },
    ),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 8, **MIXED, **EIGHT}),
    "gemma3n": (
        "gemma3n_text",
        {
            "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4, **SHARED, **EIGHT, **FOUR,
            "intermediate_size": [64] * 4,
        },
    ),
    "gemma4": ("gemma4_text", {"global_head_dim": 16, **SHARED, **EIGHT, **FOUR}),
    "vaultgemma": ("", {"query_pre_attn_scalar": 8, **MIXED, **EIGHT}),
    "olmo": ("", GROUPED),
    "olmo2": ("", GROUPED),
    "olmo3": ("", {**MIXED, **GROUPED}),
    "cohere": ("", GROUPED),
    "cohere2": ("", {**MIXED, **GROUPED}),
    "starcoder2": ("", {"sliding_window": WINDOW, **GROUPED}),
    "granite": ("", GROUPED),
    "granite_swa": ("", GROUPED),
    "glm": ("", {**PAD, **EIGHT}),
    "glm4": ("", {**PAD, **EIGHT}),
    "nemotron": ("", GROUPED),
    "helium": ("", EIGHT),
    "smollm3": ("", {**PAD, **GROUPED}),
    "exaone4": ("", {**MIXED, **GROUPED}),
    "ernie4_5": ("", EIGHT),
    "apertus": ("", GROUPED),
    "arcee": ("", GROUPED),
    "bitnet": ("", GROUPED),
    "cwm": ("", {**MIXED, **EIGHT}),
    "diffllama": ("", GROUPED),
    "hunyuan_v1_dense": ("", EIGHT),
    "hyperclovax": ("", GROUPED),
    "internlm3": ("", EIGHT),
    "iquestcoder": ("", EIGHT),
    "jais2": ("", GROUPED),
    "nanochat": ("", GROUPED),
    "seed_oss": ("", EIGHT),
    # Experts.
    "mixtral": ("", {**LOCAL, **GROUPED}),
    "qwen2_moe": ("", {**MOE, **GROUPED}),
    "qwen3_moe": ("", {**MOE, **EIGHT}),
    "olmoe": ("", {**EXPERTS, **GROUPED}),
    "flex_olmo": ("", {**EXPERTS, **PAD, **GROUPED}),
    "gpt_oss": ("", {"rope_parameters": ROTARY, **LOCAL, **MIXED, **EIGHT}),
    "granitemoe": ("", {**LOCAL, **GROUPED}),
    "granitemoeshared": ("", {"shared_intermediate_size": 32, **LOCAL, **GROUPED}),
    "phimoe": ("", {**LOCAL, **GROUPED}),
    "jetmoe": ("", {"kv_channels": 8, **LOCAL, **GROUPED}),
    "ernie4_5_moe": ("", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, **EIGHT}),
    "dots1": ("", {"n_shared_experts": 1, **ROUTED, **ONE_GROUP, **PAD, **EIGHT, "num_key_value_heads": 4}),
    "glm4_moe": ("", {**ROUTED, **ONE_GROUP, **EIGHT}),
    "afmoe": ("", {"moe_intermediate_size": 32, **EXPERTS, **EIGHT}),
    "exaone_moe": ("", {"moe_intermediate_size": 32, **EXPERTS, **MIXED, **EIGHT}),
    "hunyuan_v1_moe": ("", {"num_experts": 4, "moe_topk": 2, **EIGHT}),
    "minimax_m2": ("", {**LOCAL, **EIGHT}),
    "llama4": ("llama4_text", CHUNKED),
    "llama4_untuned": ("llama4_text", {**CHUNKED, "attn_temperature_tuning": False}),
    # Compressed keys and values.
    "deepseek_v2": ("", {"topk_method": "greedy", **LATENT, **ROUTED, **SHAPE, "num_key_value_heads": 4}),
    "deepseek_v3": ("", {**LATENT, **ROUTED, **ONE_GROUP, **SHAPE, "num_key_value_heads": 4}),
    "glm4_moe_lite": ("", {**LATENT, **ROUTED, **ONE_GROUP, **SHAPE, "num_key_value_heads": 4}),
    "minicpm3": ("", {**LATENT, **SHAPE, "num_key_value_heads": 4}),
    "longcat_flash": (
        "",
        {
            "num_layers": 2, "n_routed_experts": 4, "moe_topk": 2, "expert_ffn_hidden_size": 32, "zero_expert_num": 2,
            "ffn_hidden_size": 64, "head_dim": 8, **LATENT, **SHAPE, "num_hidden_layers": 4, "num_key_value_heads": 4,
        },
    ),
    "youtu": ("", {**LATENT, **SHAPE, "num_key_value_heads": 4}),
    # States: convolutions, linear attention, state spaces.
    "lfm2": ("", {"conv_bias": True, **CONV, **GROUPED}),
    "lfm2_moe": ("", {"num_dense_layers": 1, "moe_intermediate_size": 32, **EXPERTS, **CONV, **GROUPED}),
    "mamba": ("", {"state_size": 8, **SHAPE}),
    "mamba_with_biases": ("mamba", {"state_size": 8, "use_bias": True, **SHAPE}),
    "falcon_mamba": ("", {"state_size": 8, **SHAPE}),
    "mamba2": ("", {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 2, "chunk_size": 16, **SHAPE}),
    "bamba": ("", {"attn_layer_indices": [1], **MAMBA, **GROUPED}),
    "falcon_h1": ("", {"mamba_d_ssm": 64, **MAMBA, **EIGHT}),
    "granite_hybrid": ("granitemoehybrid", {"shared_intermediate_size": 32, **LINEAR, **LOCAL, **MAMBA, **GROUPED}),
    "jamba": (
        "",
        {
            "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
            "mamba_d_state": 8, "mamba_dt_rank": 4, **EXPERTS, **GROUPED,
        },
    ),
    "zamba2": (
        "",
        {
            "layers_block_type": ["linear_attention", "hybrid"], "mamba_d_state": 16, "mamba_ngroups": 1,
            "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 16, "num_mem_blocks": 1, **SHAPE,
        },
    ),
    "nemotron_h": (
        "",
        {
            "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"], "mamba_num_heads": 8,
            "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 16, "chunk_size": 16, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
            **EIGHT, **FOUR,
        },
    ),
    "qwen3_next": ("", {**DELTA, **MOE, **EIGHT}),
    "qwen3_5": ("qwen3_5_text", {**DELTA, **EIGHT}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {**DELTA, **MOE, **EIGHT}),
    "olmo_hybrid": ("", {**DELTA, "linear_num_value_heads": 2, **PAD, **GROUPED}),
    "kimi_linear": (
        "",
        {
            "linear_head_dim": 8, "linear_num_heads": 4, "num_local_experts": 4, **LINEAR, **LATENT, **ROUTED, **PAD,
            **SHAPE, "num_key_value_heads": 4,
        },
    ),
    "minimax": ("", {"block_size": 8, **LINEAR, **LOCAL, **EIGHT}),
    "recurrent_gemma": (
        "", {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": WINDOW, **GROUPED},
    ),
    "rwkv": ("", {"attention_hidden_size": 32, **SHAPE}),
    "xlstm": ("", {"num_heads": 4, "qk_dim_factor": 1.0, **SHAPE, "hidden_size": 64}),
}  # fmt: skip


def family_of(name: str) -> str:
    """Return transformers' name of a config's family."""
    return OPTIONS[name][0] or name


def config_of(name: str) -> PretrainedConfig | None:
    """Return the config; None if the installed transformers lacks the family."""
    family = family_of(name)
    try:
        return AutoConfig.for_model(family, **OPTIONS[name][1])
    except ValueError as problem:
        if "Unrecognized model identifier" in str(problem):
            return None
        raise
