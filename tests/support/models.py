"""Tiny random models of several architectures, and what a model generates for a prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from batchgen.model import Checkpoint, Model, open_model
from tests.support.chat_tokenizers import make_chat_tokenizer
from tests.support.families import EOS, SHAPE, SMALL

# Learned, rotary (full and partial, with grouped-query heads) and ALiBi positions.
ARCHITECTURES = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **SMALL),
    "gpt_neox": GPTNeoXConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, **SMALL,
    ),
    "opt": OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32,
        max_position_embeddings=128, pad_token_id=1, **SMALL,
    ),
    "llama": LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        max_position_embeddings=128, **SMALL,
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SMALL),
}  # fmt: skip
QWEN2 = Qwen2Config(num_key_value_heads=2, max_position_embeddings=128, **SHAPE)
GROUPED = {"num_key_value_heads": 2, "max_position_embeddings": 256, **SHAPE}
KINDS = ["sliding_attention", "full_attention"]
# Families whose decoder layers are blocks of `engines.fused`.
WITH_BLOCKS = {
    "gpt2": ARCHITECTURES["gpt2"],
    "llama": ARCHITECTURES["llama"],
    "qwen2": QWEN2,
    "qwen3": Qwen3Config(head_dim=16, **GROUPED),
    "mistral": MistralConfig(head_dim=16, sliding_window=40, **GROUPED),
    "gemma2": Gemma2Config(head_dim=16, sliding_window=40, layer_types=KINDS, query_pre_attn_scalar=16, **GROUPED),
    "gemma3": Gemma3TextConfig(head_dim=16, sliding_window=40, layer_types=KINDS, **GROUPED),
}
WITH_SLOTS = ["gpt2", "gpt_neox", "opt", "llama", "qwen2"]


def make_network(name: str, seed: int = 0) -> PreTrainedModel:
    """Return a random model whose logits spread like a trained one's, so that greedy text varies and ties are rare."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation="eager")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


def model_of(config: PretrainedConfig, checkpoint: Checkpoint, attention: str = "sdpa") -> Model:
    """Return a random model with the bundled tokenizer."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    network.generation_config = GenerationConfig()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return Model(replace(checkpoint, name="tiny", outline=config), network, torch.device("cpu"), torch.float32)


def decide_alone(model: Model, prompt: str, max_new_tokens: int) -> list[int]:
    """Return output ids up to EOS, each from a forward of the whole unpadded row, without a cache."""
    input_ids = model.checkpoint.tokenizer(prompt)["input_ids"]
    output_ids: list[int] = []
    with torch.inference_mode():
        while len(output_ids) < max_new_tokens and EOS not in output_ids:
            ids = torch.tensor([input_ids + output_ids])
            output_ids.append(int(model.network(ids, logits_to_keep=1, use_cache=False).logits[0, -1].argmax()))
    return output_ids


def generate_alone(model: Model, prompt: str, **options: object) -> list[int]:
    """Return the output ids of transformers' `generate` for one unpadded prompt."""
    return generate_ids_alone(model, model.checkpoint.tokenizer(prompt)["input_ids"], **options)


def generate_ids_alone(model: Model, prompt_ids: Sequence[int], **options: object) -> list[int]:
    """Return the output ids of transformers' `generate` for the ids of one unpadded prompt."""
    input_ids = torch.tensor([list(prompt_ids)])
    config = GenerationConfig(
        do_sample=False,
        pad_token_id=model.checkpoint.pad_token_id,
        eos_token_id=sorted(model.checkpoint.eos_token_ids),
        **options,
    )
    output = model.network.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config)
    return output[0, input_ids.shape[1] :].tolist()


def make_chat_model(template: str, folder: Path, spread: float = 0.02) -> Model:
    """Save a tiny random model with a chat template's tokenizer, 400 tokens of bytes and words, to a folder."""
    tokenizer = make_chat_tokenizer(template, "bytes")
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024, "initializer_range": spread}
    network = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **shape))
    network.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_model(str(folder), device="cpu")
