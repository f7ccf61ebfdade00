"""batchgen against `transformers.pipeline("text-generation", batch_size=16)`, alternating within one run.

    python benchmarks/against_pipeline.py [--prompts FILE.jsonl] [--rounds 3]

The model has GPT-2's shape (124M parameters) and random weights, so every row runs to its full length. `ln_f` is scaled
by 3, which gives logits the spread of a trained model's, so that exactness costs what it costs there. Without
--prompts, 500 prompts are generated with lengths like those of real instructions (log-normal, median 45, 10 to 300
tokens).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import pipeline
from workloads import make_model

from batchgen import Model, generate, open_model


def make_prompts(count: int) -> list[str]:
    source = random.Random(0)
    lengths = [min(300, max(10, round(source.lognormvariate(3.8, 0.6)))) for _ in range(count)]
    words = ["the", "a", "dog", "house", "rain", "bowl", "king", "walks", "eats", "big", "old", "in", "of", "and"]
    return [" ".join(source.choices(words, k=length)) for length in lengths]


def read_prompts(path: Path, count: int) -> list[str]:
    prompts = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    return (prompts * (count // len(prompts) + 1))[:count]


def run_batchgen(model: Model, prompts: list[str], new_tokens: int) -> int:
    return sum(r.num_output_tokens for r in generate(prompts, model, max_new_tokens=new_tokens))


def run_pipeline(generator: Callable[..., list[list[dict[str, str]]]], prompts: list[str], new_tokens: int) -> int:
    results = generator(prompts, batch_size=16, max_new_tokens=new_tokens, do_sample=False, return_full_text=False)
    return len(results) * new_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prompts = read_prompts(options.prompts, options.count) if options.prompts else make_prompts(options.count)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        model = open_model(folder)
        generator = pipeline("text-generation", model=folder, dtype=torch.float32)
        generator.tokenizer.pad_token_id = generator.tokenizer.eos_token_id
        generator.tokenizer.padding_side = "left"
        generator.model.generation_config.eos_token_id = None
        systems = {
            "pipeline, batch_size=16": lambda: run_pipeline(generator, prompts, options.new_tokens),
            "batchgen": lambda: run_batchgen(model, prompts, options.new_tokens),
        }
        rates: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(options.rounds):
            for name, run in systems.items():
                started = time.perf_counter()
                tokens = run()
                rates[name].append(tokens / (time.perf_counter() - started))
                print(f"{name:26} {rates[name][-1]:8.1f} tokens/s ({tokens} tokens)", flush=True)
    theirs, ours = (statistics.median(r) for r in rates.values())
    print(f"medians: {theirs:.1f} and {ours:.1f} tokens/s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
