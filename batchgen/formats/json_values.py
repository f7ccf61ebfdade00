"""Parse JSON strictly, and recover what is readable from a broken object. Knows nothing about rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from batchgen.records import LONGEST_ROW
from batchgen.records.json_object import DuplicateKeyError, object_of_members

WHITESPACE = " \t\n\r"
SPACE = re.compile(f"[{WHITESPACE}]*")
MOST_DIGITS = 4300  # in a whole number, which is Python's own limit
MOST_ANSWER_LEVELS = 100  # deeper values could not be written again
OBJECT_BYTES = 56  # of an empty list, or of a string without its characters
ITEM_BYTES = 16  # of each value in a list or an object
HEAVIEST_ROW = 8 * LONGEST_ROW  # bytes, as Python objects
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def parse_json(text: str) -> Any:
    """Parse one JSON value. Rejects Python's extensions (such as NaN), and objects with duplicate keys.

    Raises `ValueError` with a short message; for a duplicate key, `DuplicateKeyError`.
    """
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=object_of_members
        )
    except DuplicateKeyError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(explain(error)) from None


def explain(error: Exception) -> str:
    """What is wrong with a JSON text, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error).split(";")[0]  # what follows is Python's advice for programmers


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits} is too large")
    return value


# For detection, and for the rest of a broken object: numbers that JSON does not have become null.
LENIENT = json.JSONDecoder(
    parse_constant=lambda name: None,
    parse_int=lambda digits: int(digits) if len(digits) <= MOST_DIGITS else None,
    parse_float=lambda digits: value if math.isfinite(value := float(digits)) else None,
)


def skip_whitespace(text: str, start: int) -> int:
    """The position of the next character that is not JSON whitespace.
    >>> skip_whitespace("a \\n b", 1)
    4
    """
    space = SPACE.match(text, start)
    return space.end() if space else start


def read_members(text: str) -> dict[str, Any]:
    """The members of a broken JSON object up to the error; numbers that JSON does not have become None.

    Only complete members: a value that may have been cut short is omitted, and so are duplicate keys. If another value
    follows the object on the same line, the result is empty.
    >>> read_members('{"id": 7, "loss": NaN, "topic": "dogs", "prompt": ')
    {'id': 7, 'loss': None, 'topic': 'dogs'}
    >>> read_members('{"id": 7}{"id": 8}'), read_members('{"id": 12')
    ({}, {})
    >>> read_members('{"id": 7, "prompt": "a", "id": 8}')
    {'prompt': 'a'}
    """
    members: dict[str, Any] = {}
    twice: set[str] = set()
    place = skip_whitespace(text, 0)
    if not text.startswith("{", place):
        return members
    while not text.startswith("}", place):
        try:
            key, value, place = _read_member(text, place + 1)
        except (ValueError, RecursionError):
            return _without(members, twice)
        twice |= {key} & members.keys()
        members[key] = value
    return _without(members, twice) if skip_whitespace(text, place + 1) == len(text) else {}


def _without(members: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if key not in keys}


def _read_member(text: str, start: int) -> tuple[str, Any, int]:
    """A key, its value, and the position of the comma or brace after it. Raises `ValueError`."""
    key, place = LENIENT.raw_decode(text, skip_whitespace(text, start))
    place = skip_whitespace(text, place)
    if not isinstance(key, str) or not text.startswith(":", place):
        raise ValueError("not a member")
    value, place = LENIENT.raw_decode(text, skip_whitespace(text, place + 1))
    place = skip_whitespace(text, place)
    if not text.startswith((",", "}"), place):
        raise ValueError("the value may be cut off")
    return key, value, place


def weigh_json(text: str | bytes) -> int:
    """The approximate bytes that a JSON text takes as Python objects; nested values take far more than their text.
    >>> weigh_json('{"prompt": "My dog is"}'), weigh_json("[[],[],[]]")
    (79, 266)
    """
    weight = _weigh(text)
    if weight <= HEAVIEST_ROW:
        return weight
    whole = text if isinstance(text, str) else text.decode("utf-8", "replace")  # the commas may be in its strings
    return len(text) + _weigh(STRING.sub("", whole))


def _weigh(text: str | bytes) -> int:
    if isinstance(text, str):
        containers, items = text.count("[") + text.count("{"), text.count(",")
    else:
        containers, items = text.count(b"[") + text.count(b"{"), text.count(b",")
    return len(text) + OBJECT_BYTES * containers + ITEM_BYTES * items


def too_heavy(num_bytes: int) -> str | None:
    """The error of a row that takes `num_bytes`; None if it is within the limit."""
    if num_bytes <= HEAVIEST_ROW:
        return None
    return f"its nested values take {num_bytes // 2**20:,} MiB of memory, more than {HEAVIEST_ROW // 2**20}"


def parse_answer(text: str) -> Any:
    """Parse JSON that a model wrote; None if it is invalid, too deep, or has a number that Python cannot represent.

    For a duplicate key, the last value counts.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return None if is_deeper(value, MOST_ANSWER_LEVELS) else value


def is_deeper(value: object, levels: int) -> bool:
    """Whether a JSON value is nested deeper than `levels`: writing it again would take as much of the stack."""
    level = [value]
    for _ in range(levels):
        level = [inner for item in level if isinstance(item, dict | list) for inner in _children(item)]
        if not level:
            return False
    return True


def _children(value: dict[str, object] | list[object]) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value
