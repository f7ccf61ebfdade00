"""Rows to be scored: what follows a prompt, choices, a text by itself, the last reply of a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from batchgen.formats.json_values import parse_json
from batchgen.records import LONGEST_PROMPT, Request, ScoredKind

CONTINUATION, CHOICES = "continuation", "choices"
MOST_CHOICES = 1024


def scored_requests(requests: Iterable[Request]) -> Iterator[Request]:
    """The rows, with what is scored of them out of their columns; those that cannot be scored are marked."""
    return map(_scored, requests)


def check_is_clear(columns: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a row that may mean its prompt or its text, since nothing stands behind the former."""
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
    """By the columns that have a value: in a table, rows may be of several kinds."""
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
