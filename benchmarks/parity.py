"""How many rows get the tokens that they get alone: both engines, greedy and sampled, in batches of mixed lengths.

    python benchmarks/parity.py MODEL [--rows 200] [--new-tokens 16] [--seed 0]

Alone means a row by itself, without pads and without our cache: transformers' own cache, and the same keyed draws.
Exits with 4 if a row differs.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache

import batchgen
from batchgen import Model
from batchgen.engines.sampling.sampler import Sampler
from batchgen.model.padding import encode, pad
from batchgen.records import Request, SamplingParams, Sequence

ENGINES = ("continuous", "reference")
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 0.8, top-k 40, top-p 0.9": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "temperature 1.2, min-p 0.05, penalty 1.2": {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.2},
}
BATCHES: tuple[int | None, ...] = (None, 7)  # rows; None means as many as fit
WORDS = "the a dog house rain bowl king walks eats sees big small old in of and said never why 7 Paris".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = batchgen.open_model(given.model, device="cpu")
    rows = differing = 0
    for name, kind in KINDS.items():
        options = {"max_new_tokens": given.new_tokens, **kind}
        prompts = list(make_prompts(given.rows, random.Random(given.seed)))
        wanted = [run_alone(model, index, prompt, options) for index, prompt in enumerate(prompts)]
        for engine in ENGINES:
            for batch_size in BATCHES:
                results = batchgen.generate(prompts, model, engine=engine, batch_size=batch_size, **options)
                wrong = [r.index for r in results if list(r.output_ids) != wanted[r.index]]
                rows, differing = rows + len(results), differing + len(wrong)
                print(
                    f"{name}, {engine}, batch {batch_size or 'auto'}: {len(wrong)} of {len(results)} differ", wrong[:5]
                )
    print(f"{rows - differing:,} of {rows:,} rows get the tokens that they get alone")
    sys.exit(4 if differing else 0)


def make_prompts(count: int, draw: random.Random) -> Iterator[str]:
    """Return prompts of 1 to 60 words, most of them short."""
    for _ in range(count):
        yield " ".join(draw.choices(WORDS, k=min(60, 1 + int(draw.expovariate(1 / 12)))))


@torch.inference_mode()
def run_alone(model: Model, index: int, prompt: str, options: dict[str, Any]) -> list[int]:
    """Return a row's tokens from forwards of this row only."""
    checkpoint = model.checkpoint
    request = Request(index, str(index), prompt, SamplingParams(**options))
    [row] = encode([request], checkpoint.codec)
    sampler = Sampler(checkpoint.eos_token_ids, checkpoint.codec, recompute=model.logits_alone)
    cache = DynamicCache(config=checkpoint.config)
    while not row.is_finished:
        [token] = sampler.choose(next_logits(model, row, cache), [row])
        assert token is not None
        sampler.append(row, token)
    return row.output_ids


def next_logits(model: Model, row: Sequence, cache: DynamicCache) -> torch.Tensor:
    """Return float32 logits `[1, V]` after all tokens of a row; the cache has all of them, or all except the last."""
    num_held = cache.get_seq_length()
    batch = pad([row], 0)
    fed = type(batch)(
        batch.sequences, batch.input_ids[:, num_held:], batch.attention_mask, batch.position_ids[:, num_held:]
    )
    return model.forward(fed, past_key_values=cache)[:, -1].float()


if __name__ == "__main__":
    main()
