"""Prompts, requests and sequences to run."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from batchgen.model import Model
from batchgen.model.padding import encode
from batchgen.records import Request, SamplingParams, Sequence

RAIN = ["It will rain in the", "I want to eat a big bowl of", "My dog is"]
WORDS = "the a dog house rain bowl king walks eats sees big small old in of and".split()  # noqa: SIM905


def ragged_prompts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(1, longest))) for _ in range(count)]


def requests_of(prompts: Iterable[str], **sampling: object) -> list[Request]:
    params = replace(SamplingParams(), **sampling)
    return [Request(index, str(index), prompt, params) for index, prompt in enumerate(prompts)]


def rows_of(token_ids: Iterable[list[int]], *kinds: SamplingParams) -> list[Sequence]:
    """Return sequences of these tokens, whose samplings take turns."""
    kinds = kinds or (SamplingParams(),)
    return [Sequence(Request(i, str(i), "", kinds[i % len(kinds)]), 0, ids) for i, ids in enumerate(token_ids)]


def rows_of_lengths(lengths: Iterable[int], *kinds: SamplingParams) -> list[Sequence]:
    return rows_of(([7] * length for length in lengths), *kinds)


def encoded(prompts: Iterable[str], model: Model, **sampling: object) -> list[Sequence]:
    return encode(requests_of(prompts, **sampling), model.checkpoint.tokenizer)
