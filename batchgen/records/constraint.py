"""Constraints on a row's text: a JSON schema, a regular expression, a list of choices, or a grammar.

Reads and checks such values, whatever their source. Whether they can be met is up to the engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchgen.records.field_error import FieldError
from batchgen.records.json_object import object_of_members

ConstraintKind = Literal["json_schema", "regex", "choice", "grammar"]
WHITESPACE = ("compact", "any")
LONGEST_CONSTRAINT = 2**20  # characters
MOST_SCHEMA_LEVELS = 100
ANY_OBJECT = '{"type":"object"}'


class JsonSchema(str):
    """The text of a checked JSON schema, without spaces, keys in their original order."""

    __slots__ = ()


class Grammar(str):
    """The text of a Lark grammar."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a row's text must match. `text` is a JSON schema, a JSON list of choices, a regex, or a Lark grammar.

    With `any_whitespace`, generated JSON may have spaces and line breaks between its parts.
    """

    kind: ConstraintKind
    text: str
    any_whitespace: bool = False

    @property
    def is_json(self) -> bool:
        return self.kind == "json_schema"


def read_schema(name: str, value: object) -> JsonSchema | None:
    """Read a schema from an object, JSON text, or a pydantic class. Raises `FieldError`, as all readers here do."""
    if value is None or isinstance(value, JsonSchema):
        return value
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    if isinstance(value, str):
        value = _parsed(name, value)
    if not isinstance(value, Mapping | bool):
        raise FieldError(f'{{{name}}} must be a JSON schema, an object such as {{"type": "object"}}')
    if _is_deeper(value, MOST_SCHEMA_LEVELS):
        raise FieldError(f"{{{name}}} is nested deeper than {MOST_SCHEMA_LEVELS} levels")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError) as error:
        raise FieldError(f"{{{name}}} is not JSON: {error}") from None
    return JsonSchema(_fitting(name, text))


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(_fitting(name, text), object_pairs_hook=object_of_members)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise FieldError(f"{{{name}}} is not JSON: {problem}") from None


def read_expression(name: str, value: object) -> str | None:
    """Read a regular expression."""
    return None if value is None else _text(name, value)


def read_grammar(name: str, value: object) -> Grammar | None:
    return None if value is None else Grammar(_text(name, value))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise FieldError(f"{{{name}}} must be a non-empty text")
    return _fitting(name, value)


def _fitting(name: str, text: str) -> str:
    if len(text) > LONGEST_CONSTRAINT:
        raise FieldError(f"{{{name}}} has {len(text):,} characters, more than {LONGEST_CONSTRAINT:,}")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise FieldError(f"{{{name}}} has a lone surrogate (half a character)")
    if "\0" in text:
        raise FieldError(f"{{{name}}} has a NUL character")
    return text


def _is_deeper(value: object, most_levels: int) -> bool:
    """Whether values are nested in more than `most_levels` objects and lists."""
    level: list[object] = [value]
    for _ in range(most_levels + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list | tuple)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return bool(level)
