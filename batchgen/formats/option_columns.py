"""Warn about columns that look like generation options, which only have an effect inside `sampling`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from batchgen.formats.rows import ReadOptions, Row
from batchgen.records import SamplingParams, options_of, plain_name
from batchgen.records.near_names import OTHER_NAMES

# Other programs' names for options, except those that are also plausible names of data columns.
ELSEWHERE = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "stop_sequences", "stop_strings",
    "num_return_sequences", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "response_format",
)  # fmt: skip
NUMBERS = (int, float, int | None)
EXAMPLE = {"max_new_tokens": 100}


def warn_of_option_columns(
    rows: Iterable[Row], options: ReadOptions, say: Callable[[str], None] = lambda line: None
) -> Iterator[Row]:
    """Pass rows on; for the first one with such columns, tell `say` where its options belong."""
    used = {options.field, options.id_field, options.choices_field}
    used |= options.template.columns if options.template else frozenset()
    has_said = False
    for row in rows:
        if not has_said and not row.option_names and (names := _found(row.metadata, used)):
            has_said = True
            say(_warning(row, names))
        yield row


def _found(columns: Mapping[str, Any], used: Iterable[str | None]) -> list[str]:
    return [name for name, value in columns.items() if name not in used and _looks_like_options(name, value)]


def _looks_like_options(name: str, value: object) -> bool:
    """Whether a column is an option, or an object of only options, such as `sampling_params`."""
    if isinstance(value, Mapping) and value and all(_is_option(str(key), item) for key, item in value.items()):
        return True
    return _is_option(name, value)


def _is_option(name: str, value: object) -> bool:
    option = _meant(name)
    return option is not None and _is_value_of(option, value)


def _meant(name: str) -> str | None:
    plain = plain_name(name)
    return plain if plain in options_of(SamplingParams) else OTHER_NAMES[plain] if plain in ELSEWHERE else None


def _is_value_of(option: str, value: object) -> bool:
    """Whether a value fits the option: a column `seed` may be about plants, and `choice` about customers."""
    kind = options_of(SamplingParams)[option].kind
    if kind in NUMBERS:
        return isinstance(_number(value), int | float) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool)
    if option in ("choice", "logit_bias", "stop_token_ids"):
        return bool(value) and isinstance(value, Mapping | list)
    return bool(value) and isinstance(value, str | list | Mapping) and option != "grammar"


def _number(value: object) -> object:
    """The number in a cell, since CSV cells are text; any other value unchanged."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _warning(row: Row, names: list[str]) -> str:
    file = f"{row.source.rpartition(':')[0]}: " if row.source else ""
    columns = f"the column {names[0]} is" if len(names) == 1 else f"the columns {', '.join(names)} are"
    example = json.dumps({"sampling": _example(row.metadata, names[0])})
    return f"{file}{columns} kept as metadata, without effect: a row's options go in its sampling, such as {example}"


def _example(columns: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The row's options as `sampling` would have them, or `EXAMPLE` if they are not valid."""
    value, option = columns[name], _meant(name)
    items = columns if option else value
    keys = [name] if option else items
    given: dict[str, Any] = {near: _number(items[key]) for key in keys if (near := _meant(str(key)))}
    try:
        SamplingParams(**given)
    except (ValueError, TypeError):
        return EXAMPLE
    return given
