"""Prompts that begin alike: which tokens to compute once for many rows, and which rows to answer once.

Works on token ids only.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import replace
from itertools import takewhile

from batchgen.records import Sequence

# A shared prefix costs a forward of its own; fewer tokens saved than these are not worth it.
LEAST_PREFIX = 16
LEAST_SAVED = 128
# A row that shares less than this part of the prefix so far begins another one.
LEAST_SHARE = 0.5


def common_length(one: list[int], other: list[int]) -> int:
    """How many tokens two rows begin with in common.

    >>> common_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def shared_prefixes(sequences: Rows[Sequence]) -> Iterator[tuple[int, list[Sequence]]]:
    """Rows in groups that begin with the same `num_tokens` tokens; 0 for those that share nothing worth it.

    In the order of the tokens, rows with a common prefix stand together. Every row keeps at least one token of its own.
    """
    alone: list[Sequence] = []
    for num_tokens, group in _runs(sequences):
        if num_tokens * (len(group) - 1) >= LEAST_SAVED:
            yield num_tokens, group
        else:
            alone += group
    if alone:
        yield 0, alone


def _runs(sequences: Rows[Sequence]) -> Iterator[tuple[int, list[Sequence]]]:
    """Neighbours in token order, for as long as they share enough, with how many tokens all of them share."""
    group: list[Sequence] = []
    shared = 0
    for sequence in sorted(sequences, key=lambda s: s.input_ids):
        own = len(sequence.input_ids) - 1
        if group:
            common = min(shared, own, common_length(group[-1].input_ids, sequence.input_ids))
            if common >= LEAST_PREFIX and (len(group) == 1 or common >= LEAST_SHARE * shared):
                group.append(sequence)
                shared = common
                continue
            yield shared, group
        group, shared = [sequence], own
    if group:
        yield shared, group


def twins(sequences: Rows[Sequence]) -> list[list[Sequence]]:
    """Rows in groups that must get the same answer: greedy ones with the same tokens and options. The first leads."""
    groups: dict[object, list[Sequence]] = {}
    for sequence in sequences:
        sampling = sequence.sampling
        same = (tuple(sequence.input_ids), replace(sampling, seed=0)) if sampling.is_greedy else id(sequence)
        groups.setdefault(same, []).append(sequence)
    return list(groups.values())
