"""Random models of known shapes on a device, rows of known lengths, and the output of plain `generate` for them."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig, PretrainedConfig

from batchgen.engines import finish_all, make_engine
from batchgen.engines.protocol import Engine
from batchgen.model import Checkpoint, Model, open_checkpoint
from batchgen.model.padding import pad
from batchgen.records import EngineOptions, Request, SamplingParams, Sequence

ENGINES = ("continuous", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAST_TOKEN = 900  # every model here, even the tiny ones, has all token ids below it
TINY_VOCAB = 49_152  # a model's trial needs the tokenizer's ids
SPREAD = 0.05  # of the weights: at 0.02 attention is so flat that a wrong mask hardly shows
MOST_POSITIONS = 4096


def shape(name: str, num_layers: int | None = None, *, is_tiny: bool = False) -> PretrainedConfig:
    """Return the shape of GPT-2 124M (with more positions) or SmolLM2-135M, with all or `num_layers` layers."""
    if name == "GPT-2 124M":
        tiny = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": TINY_VOCAB}
        size = tiny if is_tiny else {"n_layer": num_layers or 12}
        return GPT2Config(n_positions=MOST_POSITIONS, bos_token_id=None, eos_token_id=None, **size)
    size = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    size |= {"num_hidden_layers": num_layers or 30, "vocab_size": 49_152}
    if is_tiny:
        size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        size |= {"num_hidden_layers": 2, "vocab_size": TINY_VOCAB}
    return LlamaConfig(
        max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, **size,
    )  # fmt: skip


SHAPES = ("GPT-2 124M", "SmolLM2-135M")


def random_model(
    name: str, device: torch.device, dtype: torch.dtype, num_layers: int | None = None, *, is_tiny: bool = False
) -> Model:
    """Return a model with the same random weights each time and no eos: every row generates its maximum of tokens."""
    config = shape(name, num_layers, is_tiny=is_tiny)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    network.generation_config = GenerationConfig()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, SPREAD)
    checkpoint = replace(  # trial results are kept by folder: each model has its own, which does not exist
        _bundled(),
        folder=Path("random") / f"{name} {num_layers} {is_tiny}",
        name=name,
        outline=config,
        eos_token_ids=frozenset(),
    )
    return Model(checkpoint, network.to(device=device, dtype=dtype), device, dtype)


@cache
def _bundled() -> Checkpoint:
    return open_checkpoint("bundled")


def prompt(length: int, variant: int = 0) -> list[int]:
    source = random.Random(f"{length} {variant}")
    return [source.randrange(LAST_TOKEN) for _ in range(length)]


def rows_of(prompts: Iterable[list[int]], sampling: SamplingParams) -> list[Sequence]:
    return [Sequence(Request(i, i, "", sampling), 0, list(ids)) for i, ids in enumerate(prompts)]


def engine_of(model: Model, name: str, rows: int | None = None, **options: object) -> Engine:
    """Return an engine with this many rows together; prefixes and equal rows are computed for each row."""
    return make_engine(model, EngineOptions(name, batch_size=rows, share_prefixes=False), **options)  # type: ignore[arg-type]


def finish(engine: Engine, rows: list[Sequence]) -> list[Sequence]:
    """Return all rows in their own order, once they are finished."""
    try:
        for _ in finish_all(engine, rows):
            pass
    finally:
        engine.close()
    return rows


@torch.inference_mode()
def generate(model: Model, rows: list[Sequence], new_tokens: int) -> list[list[int]]:
    """Return the output ids of transformers' own `generate` for one left-padded batch of the rows; greedy."""
    batch = pad(rows, model.checkpoint.pad_token_id)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    config = GenerationConfig(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0, disable_compile=True
    )
    output = model.network.generate(**{k: v.to(model.device) for k, v in inputs.items()}, generation_config=config)
    return output[:, batch.input_ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def settle(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget(device: torch.device) -> None:
    """Free the device memory that no tensor needs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
