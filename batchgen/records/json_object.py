"""Build a JSON object from its members, and reject duplicate keys, because it is unclear which value is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DuplicateKeyError(ValueError):
    """A JSON object has the same key twice."""


def object_of_members(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict; for `object_pairs_hook` of `json.loads`. Raises `DuplicateKeyError`.
    >>> object_of_members([("id", 1), ("prompt", "a"), ("id", 2)])
    Traceback (most recent call last):
    batchgen.records.json_object.DuplicateKeyError: duplicate key "id"
    """
    made = dict(members)
    if len(made) < len(members):
        seen: set[str] = set()
        twice = next(key for key, _ in members if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKeyError(f'duplicate key "{twice}"')
    return made
