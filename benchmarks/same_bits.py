"""Whether rows get the same tokens and the same bits of logits however they run: batch size, order, refill, resume.

    python benchmarks/same_bits.py MODEL [--dtype bfloat16] [--rows 200] [--new-tokens 32] [--no-exact]

Every other row is sampled, the others are greedy; some end early, so that slots refill. All rows run at once, and then
in other ways; small batches run only some of the rows, unless `--all-rows` is given. Exits with 4 if a bit differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import batchgen
from batchgen import Model
from batchgen.engines import finish_all, make_engine
from batchgen.model.padding import encode
from batchgen.records import EngineOptions, Request, SamplingParams, Sequence

if TYPE_CHECKING:
    import torch

WORDS = "the a dog house rain bowl king walks eats sees big small old in of and said never why 7 Paris".split()  # noqa: SIM905
OPENING = "You are a helpful assistant who answers in one short sentence and never asks back. " * 3
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}


@dataclass(frozen=True, slots=True)
class Way:
    """How rows run: each `every`-th, `size` at a time (None: as many as fit); if resumed, a third was done before."""

    size: int | None
    every: int = 1
    share: bool = True
    is_shuffled: bool = False
    is_resumed: bool = False

    def __str__(self) -> str:
        parts = [f"{self.size or 'auto'} at a time"]
        parts += ["shuffled"] * self.is_shuffled + ["without shared prefixes"] * (not self.share)
        return ", ".join([*parts, *(["resumed"] * self.is_resumed)])


WAYS = (
    Way(200, is_shuffled=True),
    Way(64),
    Way(64, share=False, is_shuffled=True),
    Way(32, is_shuffled=True),
    Way(7, 2, is_shuffled=True),
    Way(3, 4),
    Way(3, 4, share=False, is_shuffled=True),
    Way(1, 8),
    Way(None, share=False),
    Way(None, is_resumed=True),
)


@dataclass(slots=True)
class Row:
    """A row's results: its tokens, and a digest of the logits of each step."""

    tokens: list[int] = field(default_factory=list)
    logits: list[bytes] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--all-rows", action="store_true")
    parser.add_argument("--no-exact", action="store_true")
    given = parser.parse_args()
    model = batchgen.open_model(given.model, device="cpu", dtype=given.dtype)
    rows = list(make_rows(model, given.rows, given.new_tokens, random.Random(0)))
    expected = run(model, rows, Way(None), not given.no_exact)
    num_different = 0
    for way in WAYS:
        chosen = rows[len(rows) // 3 if way.is_resumed else 0 :: 1 if given.all_rows else way.every]
        started = time.perf_counter()
        found = run(model, chosen, way, not given.no_exact)
        tokens = sum(found[index].tokens != expected[index].tokens for index in found)
        bits = sum(has_other_bits(found[index], expected[index]) for index in found)
        num_different += bits
        seconds = time.perf_counter() - started
        print(f"{way}: {len(found)} rows, other tokens {tokens}, other bits {bits} ({seconds:.0f} s)", flush=True)
    print(f"{given.model}, {given.dtype}: {'every bit is the same' if not num_different else 'bits differ'}")
    sys.exit(4 if num_different else 0)


def has_other_bits(one: Row, other: Row) -> bool:
    """Whether bits differ.

    A row with the same tokens as another may have run as its twin, without logits of its own.
    """
    return bool(one.logits and other.logits and one.logits != other.logits)


def make_rows(model: Model, count: int, new_tokens: int, draw: random.Random) -> Iterator[Sequence]:
    """Yield rows: most are short, a third begin alike, a quarter end early."""
    requests = []
    for index in range(count):
        prompt = " ".join(draw.choices(WORDS, k=min(120, 1 + int(draw.expovariate(1 / 20)))))
        most = new_tokens if index % 4 else draw.randint(1, new_tokens)
        params = SamplingParams(max_new_tokens=most, ignore_eos=True, **(SAMPLED if index % 2 else {}))
        requests.append(Request(index, str(index), prompt if index % 3 else OPENING + prompt, params))
    yield from encode(requests, model.checkpoint.codec)


def run(model: Model, rows: list[Sequence], way: Way, is_exact: bool) -> dict[int, Row]:
    found = {row.request.index: Row() for row in rows}

    def note(logits: torch.Tensor, sequences: list[Sequence]) -> None:
        for one, sequence in zip(logits, sequences, strict=True):
            found[sequence.request.index].logits.append(blake2b(one.numpy().tobytes(), digest_size=8).digest())

    again = [Sequence(row.request, 0, list(row.input_ids)) for row in rows]
    if way.is_shuffled:
        random.Random(way.size).shuffle(again)
    options = EngineOptions(batch_size=way.size, share_prefixes=way.share, exact=is_exact)
    for sequence in finish_all(make_engine(model, options, on_logits=note, say=print), again):  # type: ignore[arg-type]
        found[sequence.request.index].tokens = sequence.output_ids
    return found


if __name__ == "__main__":
    main()
