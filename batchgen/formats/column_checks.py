"""Check a table's columns before its first row is read: duplicate or missing ones are errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.errors import InputError
from batchgen.formats.column_names import names_of

if TYPE_CHECKING:
    from batchgen.formats.rows import ReadOptions


def check_columns(columns: list[str], name: str, options: ReadOptions, hint: str = "") -> None:
    """Raise `InputError` if columns are duplicated, or the columns of the prompt or the id are missing.

    `hint` says what may be wrong with the header itself.
    """
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise InputError(f"{name} has two columns named {twice!r}: rename one")
    but = f", but {names_of(columns)}"
    if options.template and (missing := sorted(options.template.columns.difference(columns))):
        used = f"which {options.template.name} uses"
        raise InputError(f"{name} has no column {' and '.join(missing)}, {used}{but}{hint}")
    if options.prompt_fields and options.find_field(dict.fromkeys(columns)) is None:
        wanted = " or ".join(options.prompt_fields)
        raise InputError(f"{name} has no column {wanted}{but}{hint or ': name one with --field, or use --template'}")
    if options.id_field is not None and options.id_field not in columns:
        raise InputError(f"{name} has no column {options.id_field}{but}{hint or ' (see --id-field)'}")
