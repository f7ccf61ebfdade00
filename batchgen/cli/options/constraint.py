"""Schemas and grammars on the command line: files, or a schema written out."""

from __future__ import annotations

from pathlib import Path

import typer

from batchgen.errors import name_in_error
from batchgen.records.constraint import LONGEST_CONSTRAINT


def read_schema_argument(given: str) -> str:
    """Return the JSON text of a schema, given directly or as the name of a file."""
    return given if given.lstrip().startswith("{") or given in ("true", "false") else _read(given)


def read_grammar_file(given: str) -> str:
    """Return the text of a grammar file."""
    return _read(given)


def _read(name: str) -> str:
    try:
        with Path(name).open("rb") as stream:
            content = stream.read(4 * LONGEST_CONSTRAINT + 1)
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        known = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None)
        raise typer.BadParameter(f"{name_in_error(name)} cannot be read: {known or error}") from None
