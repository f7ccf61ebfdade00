"""What the slot engine gains and costs, alternating: with and without shared prefixes, with and without exactness.

    python benchmarks/slots.py [--rounds 3]

GPT-2's shape with random weights, float32. Prefixes: 200 prompts that share their first 300 tokens, 16 and 64 new
tokens. Exactness: 128 prompts of 3 to 200 tokens, 64 new tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from workloads import make_model

from batchgen import Model, open_model
from batchgen.engines import finish_all, make_engine
from batchgen.records import EngineOptions, Request, SamplingParams, Sequence

LAST_WORD = 50_000  # tokens below it are words and parts of words


def rows_of(lengths: list[int], new_tokens: int, prefix: list[int]) -> list[Sequence]:
    source = random.Random(0)
    params = SamplingParams(max_new_tokens=new_tokens)
    return [
        Sequence(Request(i, i, "", params), 0, prefix + [source.randrange(LAST_WORD) for _ in range(length)])
        for i, length in enumerate(lengths)
    ]


def rate(model: Model, rows: list[Sequence], *, share: bool = True, exact: bool = True) -> float:
    """Return new tokens per second."""
    engine = make_engine(model, EngineOptions(exact=exact, share_prefixes=share), is_owned=True)
    started = time.perf_counter()
    done = list(finish_all(engine, rows))
    return sum(row.num_output_tokens for row in done) / (time.perf_counter() - started)


def compare(name: str, model: Model, rounds: int, lengths: list[int], new_tokens: int, prefix: list[int]) -> None:
    """Print one line that compares with and without the named option, alternating rounds."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for on, so_far in rates.items():
            so_far.append(rate(model, rows_of(lengths, new_tokens, prefix), **{name: on}))
    with_it, without = (statistics.median(rates[on]) for on in (True, False))
    told = {on: " ".join(f"{r:.0f}" for r in so_far) for on, so_far in rates.items()}
    print(f"{name}, {new_tokens} new tokens: on {told[True]}, off {told[False]} tokens/s: {with_it / without:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    source = random.Random(1)
    ragged = [min(200, max(3, round(source.lognormvariate(3.6, 0.8)))) for _ in range(128)]
    prefix = [source.randrange(LAST_WORD) for _ in range(300)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        model = open_model(folder)
    rate(model, rows_of(ragged[:32], 4, []))
    compare("exact", model, rounds, ragged, 64, [])
    for new_tokens in (16, 64):
        compare("share", model, rounds, [source.randint(5, 30) for _ in range(200)], new_tokens, prefix)


if __name__ == "__main__":
    main()
