"""Tokens of rows in slots against plain `generate` on each prompt alone: any models, in float32.

    python benchmarks/parity_generate.py FOLDER...

40 prompts of 1 to 700 words, 24 new tokens each, greedy; shuffled for each batch size (1, 7 and 32), so that rows of
other lengths refill the slots. The engine must be `continuous` in float32 and in bfloat16. The exit code is 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch
from memory_families import WORDS
from transformers import GenerationConfig

import batchgen
from batchgen.engines import make_engine
from batchgen.machine.process import settle
from batchgen.model import Model
from batchgen.model.quiet import quiet

COUNT, NEW_TOKENS, BATCHES = 40, 24, (1, 7, 32)
LONG, MOST = 6, 700  # prompts with up to this many words; the others have up to 60


def make_prompts() -> list[str]:
    draw = random.Random(0)
    lengths = [draw.randint(1, 60) for _ in range(COUNT - LONG)] + [draw.randint(100, MOST) for _ in range(LONG)]
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


@torch.inference_mode()
def run_alone(model: Model, prompt: str) -> list[int]:
    """Return the output of `generate` for one prompt."""
    ids = torch.tensor([model.checkpoint.tokenizer(prompt)["input_ids"]])  # [1, T]
    plain = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    with quiet():
        output = model.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    return output[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def check(folder: Path) -> bool:
    started = time.perf_counter()
    model = batchgen.open_model(str(folder), device="cpu", dtype="float32")
    prompts = make_prompts()
    alone = [run_alone(model, prompt) for prompt in prompts]
    engine, equal = make_engine(model).stats.engine, {}
    for rows in BATCHES:
        order = random.Random(rows).sample(range(COUNT), COUNT)
        shuffled = [prompts[row] for row in order]
        results = batchgen.generate(shuffled, model, max_new_tokens=NEW_TOKENS, batch_size=rows, ignore_eos=True)
        equal[rows] = sum(list(r.output_ids) == alone[row] for r, row in zip(results, order, strict=True))
    del model
    coarse = make_engine(batchgen.open_model(str(folder), device="cpu", dtype="bfloat16")).stats.engine
    counts = ", ".join(f"{count} of {COUNT} at {rows}" for rows, count in equal.items())
    seconds = time.perf_counter() - started
    print(f"{folder.name}: {engine} in float32, {coarse} in bfloat16; {counts} ({seconds:.0f} s)", flush=True)
    return engine == coarse == "continuous" and set(equal.values()) == {COUNT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    settle()
    found = [check(folder) for folder in parser.parse_args().folders]
    sys.exit(not all(found))


if __name__ == "__main__":
    main()
