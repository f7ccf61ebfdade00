"""How exact scores are, and what they cost: rows in batches against each row alone, choices against whole rows, memory.

    python benchmarks/scores.py exact MODEL [--rows 500] [--batch-sizes 1 7 64]
    python benchmarks/scores.py choices MODEL [--rows 8]     # 4 choices behind a prompt of 300 tokens
    python benchmarks/scores.py memory MODEL [--rows 64]     # texts of 512 tokens: predicted and measured bytes

Alone means an unpadded forward of the row by itself, on the network as it was loaded. `exact` exits with 4 if a token
differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Iterable

import torch

import batchgen
from batchgen import Model
from batchgen.engines import Engine, finish_all, make_scoring_engine
from batchgen.records import EngineOptions, Passage, Request, Sequence

ALLOWED = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measure", choices=["exact", "choices", "memory"])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 7, 64])
    given = parser.parse_args()
    model = batchgen.open_model(given.model, device="cpu", dtype="float32")
    if given.measure == "exact":
        exact(model, given.rows or 500, given.batch_sizes)
    elif given.measure == "choices":
        choices(model, given.rows or 8)
    else:
        memory(model, given.rows or 64)


# Exactness.


def exact(model: Model, number: int, batch_sizes: list[int]) -> None:
    """Print the largest difference of any token, over rows of all kinds in several batch sizes, shuffled."""
    rows = list(make_rows(model, number, random.Random(0)))
    wanted = [[alone(model, passage) for passage in row] for row in rows]
    print(f"{sum(map(len, rows))} texts of {number} rows alone: done", flush=True)
    largest = 0.0
    for batch_size in batch_sizes:
        engine = make_scoring_engine(model, EngineOptions(batch_size=batch_size))
        strays = [
            max(abs(entry.logprob - own) for entry, own in zip(row.scores[place], wanted[index][place], strict=True))
            for row in finish_all(engine, shuffled(rows))
            for index in [row.request.index]
            for place in range(len(row.passages))
        ]
        largest = max(largest, *strays)
        print(
            f"batch {batch_size}: {len(strays)} texts of {len(rows)} rows stray by up to {max(strays):.1e}", flush=True
        )
    tokens = sum(len(numbers) for row in wanted for numbers in row)
    print(f"{tokens:,} tokens stray by up to {largest:.1e}")
    sys.exit(4 if largest > ALLOWED else 0)


def make_rows(model: Model, number: int, draw: random.Random) -> Iterable[tuple[Passage, ...]]:
    """Return texts, continuations and four choices in turn, of 1 to 300 tokens, most of them short."""
    first = first_token(model)
    for index in range(number):
        prompt = tokens_of(model, draw, min(300, 1 + int(draw.expovariate(1 / (9, 9, 9, 40)[index % 4]))))
        ends = [tokens_of(model, draw, draw.randint(1, 8)) for _ in range((0, 1, 0, 4)[index % 4])]
        yield tuple(Passage(prompt + end, len(prompt)) for end in ends) or (Passage((first, *prompt), 1),)


def first_token(model: Model) -> int:
    """Return the token that replaces a missing prompt."""
    bos = model.checkpoint.tokenizer.bos_token_id
    return model.checkpoint.pad_token_id if bos is None else int(bos)


def tokens_of(model: Model, draw: random.Random, number: int) -> tuple[int, ...]:
    return tuple(draw.randrange(200, model.checkpoint.vocab_size) for _ in range(number))


def shuffled(rows: list[tuple[Passage, ...]]) -> list[Sequence]:
    made = [sequence_of(index, passages) for index, passages in enumerate(rows)]
    random.Random(1).shuffle(made)
    return made


def sequence_of(index: int, passages: tuple[Passage, ...]) -> Sequence:
    longest = max(passages, key=lambda passage: len(passage.fed))
    return Sequence(Request(index, str(index), "", scored="choices"), 0, list(longest.fed), passages=passages)


@torch.inference_mode()
def alone(model: Model, passage: Passage) -> list[float]:
    """Return the log-probabilities of a passage's tokens, from a forward of it alone."""
    logits = model.network(torch.tensor([passage.fed])).logits[0, passage.start - 1 :].float()  # [N, V]
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(passage.scored)[:, None])[:, 0].tolist()


# Cost.


def choices(model: Model, number: int) -> None:
    """Compare four choices after a prompt of 300 tokens with scoring all four rows whole; alternating, three times."""
    draw = random.Random(0)
    rows = []
    for _ in range(number):
        prompt = tokens_of(model, draw, 300)
        rows.append(tuple(Passage(prompt + tokens_of(model, draw, draw.randint(2, 8)), 300) for _ in range(4)))
    shared = make_scoring_engine(model)
    whole = make_scoring_engine(model, EngineOptions(share_prefixes=False))
    ratios = []
    for _ in range(3):
        seconds = [
            seconds_of(lambda engine=engine: list(finish_all(engine, shuffled(rows)))) for engine in (whole, shared)
        ]
        ratios.append(seconds[0] / seconds[1])
        print(f"{number} rows: whole {seconds[0]:.2f} s, shared {seconds[1]:.2f} s: {ratios[-1]:.2f}x", flush=True)
    print(f"median {sorted(ratios)[1]:.2f}x")


def seconds_of(engine: Engine, rows: list[tuple[Passage, ...]]) -> float:
    started = time.perf_counter()
    deque(finish_all(engine, shuffled(rows)), maxlen=0)
    return time.perf_counter() - started


def memory(model: Model, number: int) -> None:
    """Score every token of texts of 512 tokens; print the prediction above the weights, and the peak."""
    draw = random.Random(0)
    rows = [(Passage(tokens_of(model, draw, 513), 1),) for _ in range(number)]
    engine = make_scoring_engine(model)
    for row in finish_all(engine, shuffled(rows)):
        assert row.error is None, row.error
    found = engine.stats
    print(
        f"vocabulary {model.checkpoint.vocab_size:,}, {number} texts in {found.batches} batches: "
        f"peak {found.peak_bytes / 2**20:,.0f} MiB, "
        f"predicted {found.predicted_bytes / 2**20:,.0f} MiB, measured {(found.measured_bytes or 0) / 2**20:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
