"""Which rows run together: batches of similar length, and prefills.

A plan is a pure function of the rows' lengths, the engine's memory arithmetic and the budget: same input, same plan.
Knows nothing about models or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from batchgen.planning.memory import BatchLimits, kinds_of, largest_batch
from batchgen.records import Sequence

# A decode step of B rows costs about as much as B + 48 tokens in a prefill: 45 ms + 0.85 ms per row, measured with
# GPT-2 124M in float32 on two cores. The fixed part reads the weights.
STEP_OVERHEAD = 48


def plan_batches(sequences: Iterable[Sequence], limits: BatchLimits) -> list[list[Sequence]]:
    """Divide sequences into batches of similar length, the longest first.

    The rows are sorted by length and cut into batches that fit; of all ways to cut them, dynamic programming from the
    short end finds the cheapest. With `--batch-size N` every batch except the last has N rows.
    """
    rows = longest_first(sequences)
    if limits.num_rows is not None:
        return [rows[start : start + limits.num_rows] for start in range(0, len(rows), limits.num_rows)]
    kinds = kinds_of(row.sampling for row in rows)
    max_new_tokens = max((kind.max_new_tokens for kind in kinds), default=0)
    lengths = [len(row.token_ids) for row in rows]
    rooms = {length: largest_batch(limits, length, kinds, limits.most_rows) for length in set(lengths)}
    # A batch of n rows of S columns costs n * S in the prefill and `step_work(n)` for each new token.
    remaining = iter(rows)
    sizes = cheapest_cuts(lengths, rooms, max_new_tokens, STEP_OVERHEAD * max_new_tokens)
    return [list(islice(remaining, size)) for size in sizes]


def plan_prefills(lengths: list[int], rows_at_once: Callable[[int], int]) -> list[int]:
    """Divide rows of these lengths, the longest first, into the cheapest prefills; return the number of rows of each.

    A prefill of n rows of S columns costs n * S, and reads the weights once; at most `rows_at_once(S)` rows fit into
    one.
    """
    return cheapest_cuts(lengths, {length: rows_at_once(length) for length in set(lengths)}, 0, STEP_OVERHEAD)


def longest_first(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Sort sequences by their number of tokens, the longest first; ties in input order."""
    return sorted(sequences, key=lambda s: (-len(s.token_ids), s.request.index, s.sample_index))


def cheapest_cuts(lengths: list[int], rooms: Mapping[int, int], row_work: int, batch_work: int) -> list[int]:
    """Divide rows of these lengths, the longest first, into batches at the lowest cost; return the rows of each.

    A batch whose longest row has S tokens has at most `rooms[S]` rows.

    A batch of n rows of S columns costs n * (S + row_work) + batch_work, in tokens through the model.

    >>> cheapest_cuts([9, 9, 1, 1], {9: 4, 1: 4}, 0, 5)
    [2, 2]
    """
    cheapest: list[int] = [0] * (len(lengths) + 1)  # cost of running rows[start:]
    sizes = [0] * len(lengths)  # of the batch that begins at a row
    for start in range(len(lengths) - 1, -1, -1):
        a_row = lengths[start] + row_work
        after = cheapest[start + 1 : start + 1 + rooms[lengths[start]]]
        costs = [a_row * num_rows + rest for num_rows, rest in enumerate(after, 1)]
        least = min(costs)
        cheapest[start] = least + batch_work
        sizes[start] = len(costs) - costs[::-1].index(least)  # among equal costs, the longest batch
    batches = []
    start = 0
    while start < len(sizes):
        batches.append(sizes[start])
        start += sizes[start]
    return batches


def step_work(rows: int) -> int:
    """Return the work of one decode step, in tokens through the model."""
    return rows + STEP_OVERHEAD
