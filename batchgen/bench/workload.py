"""The workloads: rows of random tokens with chosen lengths, and prompts of words. Runs no engine."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

from batchgen.engines.continuous.prefixes import common_length
from batchgen.errors import UsageError
from batchgen.model.padding import encode
from batchgen.records import Request, SamplingParams, Sequence

if TYPE_CHECKING:
    from batchgen.model import Checkpoint

FIXED_PROMPT = 32
SHORTEST, TYPICAL, LONGEST, SPREAD = 3, 25, 200, 1.0  # prompt tokens of the ragged rows: log-normal, cut off
# Rows of a ragged workload per row that runs at a time: the others wait, and replace rows that finish.
WAITING = 2
SEED = 0
WHO = ("My dog", "The old man", "A little girl", "The teacher", "Our neighbour", "The king", "My best friend", "A bird")
WHAT = ("is", "went to the", "said that the", "wanted to eat a big bowl of")


@dataclass(slots=True, eq=False)
class EndingRow(Sequence):
    """A row that finishes after `ends_after` tokens although it may generate more, like a row that meets eos."""

    ends_after: int = 1

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.num_output_tokens >= self.ends_after


def make_rows(workload: str, rows: int, max_new_tokens: int, checkpoint: Checkpoint) -> list[Sequence]:
    """New rows for batches of `rows`: `fixed` rows are all alike, `ragged` ones differ in prompt and output lengths.

    The same call gives the same rows. Raises `UsageError` if the model has no room for them.
    """
    longest = _longest_prompt(max_new_tokens, checkpoint.n_positions)
    draw = random.Random(SEED)
    if workload == "fixed":
        lengths = [(min(FIXED_PROMPT, longest), max_new_tokens)] * rows
    else:
        lengths = ragged_lengths(WAITING * rows, max_new_tokens, longest)
    limit = 2 * max_new_tokens if workload == "ragged" else max_new_tokens
    tokens = [token for token in range(checkpoint.vocab_size) if token not in checkpoint.eos_token_ids]
    sampling = SamplingParams(max_new_tokens=limit)
    return [
        EndingRow(Request(i, i, "", sampling), 0, draw.choices(tokens, k=prompt), ends_after=end)
        for i, (prompt, end) in enumerate(lengths)
    ]


def ragged_lengths(num_rows: int, max_new_tokens: int, longest: int = LONGEST) -> list[tuple[int, int]]:
    """Prompt tokens (log-normal) and output tokens (uniform from 1 to twice `max_new_tokens`) of each row.

    Both are quantiles in shuffled order, so that a few rows have the same spread as many.
    """
    draw = random.Random(SEED)
    shares = [(i + 0.5) / num_rows for i in range(num_rows)]
    prompts = [round(TYPICAL * math.exp(SPREAD * NormalDist().inv_cdf(share))) for share in shares]
    outputs = [math.ceil(share * 2 * max_new_tokens) for share in shares]
    draw.shuffle(prompts)
    draw.shuffle(outputs)
    return [(min(max(SHORTEST, length), longest), end) for length, end in zip(prompts, outputs, strict=True)]


def _longest_prompt(max_new_tokens: int, n_positions: int | None) -> int:
    longest = LONGEST if n_positions is None else min(LONGEST, n_positions - 2 * max_new_tokens)
    if longest < SHORTEST:
        raise UsageError(
            f"--max-new-tokens {max_new_tokens} leaves no room for prompts: ragged rows generate up to twice as many, "
            f"and the model holds {n_positions} positions"
        )
    return longest


def word_rows(max_new_tokens: int, checkpoint: Checkpoint) -> list[Sequence]:
    """32 greedy rows with prompts of words."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    requests = [
        Request(i, i, prompt, sampling) for i, prompt in enumerate(f"{who} {what}" for who in WHO for what in WHAT)
    ]
    return encode(requests, checkpoint.codec, n_positions=checkpoint.n_positions, vocab_size=checkpoint.vocab_size)


def differing_share(outputs: list[list[int]], others: list[list[int]]) -> float:
    """The share of tokens that differ: in each row, all from the first difference on, because the rest depends on it.
    >>> differing_share([[1, 2, 3, 4]], [[1, 2, 9, 4]])
    0.5
    """
    total = sum(max(len(one), len(other)) for one, other in zip(outputs, others, strict=True))
    same = sum(common_length(one, other) for one, other in zip(outputs, others, strict=True))
    return 1 - same / total if total else 0.0


def without_eos(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without eos tokens, so that only the workload decides the length of rows."""
    return replace(checkpoint, eos_token_ids=frozenset())
