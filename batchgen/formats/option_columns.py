"""Columns that look like options of generation, which have an effect only inside `sampling`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from batchgen.formats.rows import ReadOptions, Row
from batchgen.records import SamplingParams, options_of

# What other programs call them.
ALIASES = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "max_output_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens", "stop_sequences": "stop",
}  # fmt: skip


def warn_of_option_columns(
    rows: Iterable[Row], options: ReadOptions, say: Callable[[str], None] = lambda line: None
) -> Iterator[Row]:
    """The same rows. The first one with such a column is told to `say`, and where its options go."""
    meant = {name: name for name in options_of(SamplingParams)} | ALIASES
    used = options.template.columns if options.template else frozenset()
    watched = meant.keys() - used
    has_said = False
    for row in rows:
        if not has_said and not row.option_names and (names := _found(row.metadata, watched, meant)):
            has_said = True
            say(_warning(row, names, meant))
        yield row


def _found(columns: dict[str, Any], watched: Iterable[str], meant: dict[str, str]) -> list[str]:
    return [name for name in columns if _plain(name) in watched and _is_value_of(meant[_plain(name)], columns[name])]


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _is_value_of(option: str, value: object) -> bool:
    """Whether a column's value could be that option's: a seed may also be of a plant."""
    if options_of(SamplingParams)[option].kind == tuple[str, ...]:
        return bool(value) and isinstance(value, str | list)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warning(row: Row, names: list[str], meant: dict[str, str]) -> str:
    file = f"{row.source.rpartition(':')[0]}: " if row.source else ""
    columns = f"the column {names[0]} is" if len(names) == 1 else f"the columns {', '.join(names)} are"
    example = json.dumps({"sampling": {meant[_plain(name)]: row.metadata[name] for name in names[:1]}})
    return f"{file}{columns} kept as metadata, without effect: a row's options go in its sampling, such as {example}"
