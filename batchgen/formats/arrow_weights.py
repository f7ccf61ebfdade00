"""Estimate how many bytes the rows of an Arrow batch take as Python objects.

With dictionary or run-length encoding, a small file can become large, so only the decoded size counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batchgen.formats.json_values import OBJECT_BYTES

NUMBER_BYTES = 8  # of a number in Arrow


def weigh_batch(batch: Any, pa: Any) -> list[int]:
    """The approximate bytes that each row of a record batch takes."""
    import numpy as np

    total = np.zeros(batch.num_rows, np.int64)  # [rows]
    for column in batch.columns:
        total += _weigh(column, pa)
    return [int(weight) for weight in total]


def _weigh(array: Any, pa: Any) -> Any:
    """Bytes of each value of an array `[n]`, including everything nested in it."""
    import numpy as np

    kind = array.type
    types = pa.types
    if types.is_dictionary(kind):
        weights = np.append(_weigh(array.dictionary, pa), OBJECT_BYTES)  # the last one for null
        indices = array.indices.fill_null(len(array.dictionary)).to_numpy(zero_copy_only=False)
        return weights[indices.astype(np.int64)]
    if types.is_struct(kind):
        parts = (_weigh(part, pa) for part in array.flatten())
        return sum(parts, np.full(len(array), OBJECT_BYTES, np.int64))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        return _weigh_lists(array, pa)
    if types.is_fixed_size_list(kind):
        inner = _weigh(array.flatten(), pa) if not array.null_count else np.full(len(array) * kind.list_size, 0)
        return inner.reshape(len(array), kind.list_size).sum(axis=1) + OBJECT_BYTES
    if _is_bytes(kind, types):
        lengths = pa.compute.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return lengths.astype(np.int64) + OBJECT_BYTES
    return np.full(len(array), NUMBER_BYTES, np.int64)


def _is_bytes(kind: Any, types: Any) -> bool:
    """Whether values of an Arrow type are strings or bytes."""
    of_any_length = types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)
    return bool(of_any_length or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _weigh_lists(array: Any, pa: Any) -> Any:
    import numpy as np

    offsets = array.offsets.to_numpy()  # [n + 1]
    if pa.types.is_map(array.type):
        inner = _weigh(array.keys, pa) + _weigh(array.items, pa)
    else:
        inner = _weigh(array.values, pa)
    sums = np.concatenate(([0], np.cumsum(inner)))  # total of all values before each
    if pa.types.is_map(array.type):
        offsets = offsets - offsets[0]
    return sums[offsets[1:]] - sums[offsets[:-1]] + OBJECT_BYTES


def cut_by_weight(weights: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut rows into slices of weight at most `most`, or single rows; yields (start, number of rows).
    >>> list(cut_by_weight([1, 1, 9, 1], 3))
    [(0, 2), (2, 1), (3, 1)]
    """
    start = total = 0
    for place, weight in enumerate(weights):
        if place > start and total + weight > most:
            yield start, place - start
            start, total = place, 0
        total += weight
    if start < len(weights):
        yield start, len(weights) - start
