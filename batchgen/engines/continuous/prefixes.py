"""Prompts with common beginnings: which tokens to compute once for many rows, and which rows to answer once.

Works on token ids only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, takewhile

from batchgen.engines.continuous.memory import PAGE
from batchgen.records import Sequence

# A shared prefix costs a forward of its own; it is not worth it for fewer saved tokens than this.
LEAST_PREFIX = PAGE
LEAST_SAVED = 128


def common_length(one: list[int], other: list[int]) -> int:
    """Return how many leading tokens two rows have in common.

    >>> common_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def shared_prefixes(sequences: Rows[Sequence]) -> Iterator[tuple[int, list[Sequence]]]:
    """Yield groups of rows that begin with the same `num_tokens` tokens; 0 for rows that share nothing worthwhile.

    Every row keeps at least one token of its own.
    """
    rows = sorted(sequences, key=lambda s: s.input_ids)  # rows with a common prefix become neighbours
    if rows:
        best = _best_groups([_shared(*pair) for pair in pairwise(rows)])
        yield from ((num_tokens, [rows[i] for i in group]) for num_tokens, group in best.groups)
        if best.alone:
            yield 0, [rows[i] for i in best.alone]


def _shared(one: Sequence, other: Sequence) -> int:
    """Return how many leading tokens, in whole pages, two rows share while each keeps at least one of its own.

    A row's sums run page by page, so a prefix that ends at a page boundary does not change them.
    """
    common = common_length(one.input_ids, other.input_ids)
    return min(common, len(one.input_ids) - 1, len(other.input_ids) - 1) // PAGE * PAGE


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring rows: the groups of them that save the most tokens, with prefix lengths, and the ungrouped rows."""

    rows: range
    saved: int
    groups: list[tuple[int, list[int]]]
    alone: list[int]


def _best_groups(shared: list[int]) -> _Run:
    """Group rows whose neighbours i and i + 1 share `shared[i]` tokens; runs that share more are considered first.

    >>> _best_groups([20, 300, 300]).groups
    [(300, [1, 2, 3])]
    """
    runs = [_Run(range(row, row + 1), 0, [], [row]) for row in range(len(shared) + 1)]
    at_start, at_stop = {run.rows.start: run for run in runs}, {run.rows.stop: run for run in runs}
    borders = sorted(range(len(shared)), key=lambda i: (-shared[i], i))
    for num_tokens, alike in groupby(borders, key=shared.__getitem__):
        for chain in _chains(alike, at_start, at_stop):
            run = _joined(chain, num_tokens)
            at_start[run.rows.start] = at_stop[run.rows.stop] = run
    return at_start[0]


def _chains(borders: Iterable[int], at_start: dict[int, _Run], at_stop: dict[int, _Run]) -> list[list[_Run]]:
    """Return the runs on both sides of `borders`, chaining those next to each other."""
    chains: list[list[_Run]] = []
    for i in borders:
        left, right = at_stop[i + 1], at_start[i + 1]
        if chains and chains[-1][-1] is left:
            chains[-1].append(right)
        else:
            chains.append([left, right])
    return chains


def _joined(runs: list[_Run], num_tokens: int) -> _Run:
    """Join neighbouring runs that all share `num_tokens`: into a new group of rows that gain by it, or unchanged."""
    rows = range(runs[0].rows.start, runs[-1].rows.stop)
    kept, left = [group for run in runs for group in run.groups], [row for run in runs for row in run.alone]
    apart = _Run(rows, sum(run.saved for run in runs), kept, left)
    if num_tokens < LEAST_PREFIX:
        return apart
    saved = -num_tokens - LEAST_SAVED  # because the prefix itself is computed
    groups: list[tuple[int, list[int]]] = []
    together: list[int] = []
    for run in runs:
        whole, rest = num_tokens * len(run.rows), run.saved + num_tokens * len(run.alone)
        if whole >= rest:
            together += run.rows
        else:
            groups += run.groups
            together += run.alone
        saved += max(whole, rest)
    return _Run(rows, saved, [*groups, (num_tokens, together)], []) if saved >= apart.saved else apart


def twins(sequences: Rows[Sequence]) -> list[list[Sequence]]:
    """Group rows that must get the same answer: greedy ones with the same tokens and options. The first one leads."""
    groups: dict[object, list[Sequence]] = {}
    for sequence in sequences:
        sampling = sequence.sampling
        same = (tuple(sequence.input_ids), replace(sampling, seed=0)) if sampling.is_greedy else id(sequence)
        groups.setdefault(same, []).append(sequence)
    return list(groups.values())
