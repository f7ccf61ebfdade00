"""Column names for error messages: they list what there is, because a missing name is often only misspelled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

MOST_COLUMNS_SHOWN, LONGEST_NAME_SHOWN = 12, 40


def names_of(columns: Iterable[str]) -> str:
    shown = list(islice(columns, MOST_COLUMNS_SHOWN + 1))
    return ", ".join(shown[:MOST_COLUMNS_SHOWN]) + "…" * (len(shown) > MOST_COLUMNS_SHOWN)


def row_has(columns: Mapping[str, Any]) -> str:
    """The end of the error for a row that lacks a field.
    >>> row_has({"id": 7, "prmpt": "My dog is"})
    '; the row has id, prmpt'
    """
    return f"; the row has {names_of(name[:LONGEST_NAME_SHOWN] for name in columns)}" if columns else ""
