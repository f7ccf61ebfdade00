"""Rows to be scored: a continuation of a prompt, choices, a text alone, or the last reply of a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from batchgen.formats.json_values import parse_json
from batchgen.records import LONGEST_PROMPT, Request, ScoredKind

CONTINUATION, CHOICES = "continuation", "choices"
MOST_CHOICES = 1024


def scored_requests(requests: Iterable[Request]) -> Iterator[Request]:
    """The rows with the texts to be scored taken from their columns; rows that cannot be scored get an error."""
    return map(_scored, requests)


def check_is_clear(columns: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a row has both a prompt and a text but no continuation: either may be meant."""
    has_replies = any(columns.get(name) not in (None, "") for name in (CONTINUATION, CHOICES))
    if {"prompt", "text"} <= columns.keys() and not has_replies:
        raise ValueError("the row has a prompt and a text: name one with --field, or call the text continuation")


def _scored(request: Request) -> Request:
    columns, kind = dict(request.metadata), _kind(request)
    given = columns.pop(kind, None) if kind in (CONTINUATION, CHOICES) else None
    if request.error:
        return replace(request, scored=kind, metadata=columns)
    try:
        replies = _replies(kind, given) if given is not None else ()
        if CONTINUATION in columns and kind == CHOICES:
            raise ValueError(f"the row has {CHOICES} and a {CONTINUATION}: remove one")
    except ValueError as problem:
        return replace(request, scored=kind, metadata=columns, error=request.located(str(problem)))
    return replace(request, scored=kind, metadata=columns, replies=replies)


def _kind(request: Request) -> ScoredKind:
    """The kind of a row, from the columns that have a value: rows of a table may be of different kinds."""
    columns = request.metadata
    if columns.get(CHOICES) not in (None, ""):
        return "choices"
    if columns.get(CONTINUATION) is not None:
        return "continuation"
    return "reply" if request.conversation else "text"


def _replies(kind: ScoredKind, given: Any) -> tuple[str, ...]:
    if kind == CONTINUATION:
        return (_text(given, f"the {CONTINUATION}"),)
    if isinstance(given, str):  # a cell of a table
        try:
            given = parse_json(given)
        except ValueError:
            given = None
    if not isinstance(given, list) or not given:
        raise ValueError(f'the {CHOICES} are not a list of texts such as ["yes", "no"]')
    if len(given) > MOST_CHOICES:
        raise ValueError(f"the row has {len(given):,} {CHOICES}, more than {MOST_CHOICES:,}")
    return tuple(_text(choice, f"{CHOICES}[{place}]") for place, choice in enumerate(given))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    if not value:
        raise ValueError(f"{name} is empty")
    if len(value) > LONGEST_PROMPT:
        raise ValueError(f"{name} has {len(value):,} characters, more than {LONGEST_PROMPT:,}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a lone surrogate (half a character) at character {error.start} of {name}") from None
    return value
