"""What is said where a table or a row lacks a column: which ones it has, since a name is often only misspelt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from batchgen.errors import InputError

if TYPE_CHECKING:
    from batchgen.formats.rows import ReadOptions

MOST_COLUMNS_SHOWN, LONGEST_NAME_SHOWN = 12, 40


def check_columns(columns: list[str], name: str, options: ReadOptions, hint: str = "") -> None:
    """Raises `InputError` where no row of a table can have a prompt, an id, or one value for each name.

    `hint` is what may be wrong with the columns themselves.
    """
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise InputError(f"{name} has two columns named {twice!r}: rename one")
    but = f", but {_names(columns)}"
    if options.template and (missing := sorted(options.template.columns.difference(columns))):
        used = f"which {options.template.name} uses"
        raise InputError(f"{name} has no column {' and '.join(missing)}, {used}{but}{hint}")
    if options.prompt_fields and options.find_field(dict.fromkeys(columns)) is None:
        wanted = " or ".join(options.prompt_fields)
        raise InputError(f"{name} has no column {wanted}{but}{hint or ': name one with --field, or use --template'}")
    if options.id_field is not None and options.id_field not in columns:
        raise InputError(f"{name} has no column {options.id_field}{but}{hint or ' (see --id-field)'}")


def _names(columns: Iterable[str]) -> str:
    shown = list(islice(columns, MOST_COLUMNS_SHOWN + 1))
    return ", ".join(shown[:MOST_COLUMNS_SHOWN]) + "…" * (len(shown) > MOST_COLUMNS_SHOWN)


def row_has(columns: Mapping[str, Any]) -> str:
    """The end of an error of a row that lacks a field.

    >>> row_has({"id": 7, "prmpt": "My dog is"})
    '; the row has id, prmpt'
    """
    return f"; the row has {_names(name[:LONGEST_NAME_SHOWN] for name in columns)}" if columns else ""
