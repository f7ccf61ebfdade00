"""Name what differs between a run and the one it would continue, so that the user recognizes the option."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from batchgen.errors import OVERWRITE, OutputError, parameter

TOLD_BY_HASH = {"--chat-template"}  # the path may change; its hash is compared instead
# Parameters with other names than the facts.
PARAMETERS = {"chat_template_sha256": "chat_template", "--chat-template-arg": "chat_template_args"}
HASH_SHOWN = 12  # digits of a hash, enough to distinguish two
LONGEST_VALUE, LONGEST_SAME = 100, 40  # characters of a value, and of what two values have in common


def check_same(begun: Mapping[str, Any], now: Mapping[str, Any], where: object) -> None:
    """Raise `OutputError` for the first fact that differs from what a run was started with."""
    for name, value in now.items():
        if name in begun and begun[name] != value and name not in TOLD_BY_HASH:
            raise OutputError(
                f"{where} was started {_difference(name, begun[name], value)}: "
                f"use the same value as before, or start over with {OVERWRITE}"
            )


def shown_hash(digest: str | None) -> str:
    """Shorten a hash to enough digits to distinguish two."""
    return f"{digest[:HASH_SHOWN]}…" if digest else "(none)"


def _difference(name: str, begun: Any, now: Any) -> str:
    """What a fact was and what it is now. Options that take no value, or have none, are given or not.

    >>> pairs = [("--seed", 0, 3), ("--stop", [], ["a", "b"]), ("--system", "Hi", None), ("--exact", True, False)]
    >>> for pair in pairs:
    ...     print(_difference(*pair).replace(chr(0), ""))
    with seed 0, but now it is 3
    without stop, but now it is "a", "b"
    with system "Hi", but now without it
    with exact, but now without it
    """
    before, after = _shown(name, begun, now), _shown(name, now, begun)
    option = _option(name)
    was = f"without {option}" if before is None else f"with {option} {before}".rstrip()
    if after is None:
        return f"{was}, but now without it"
    return f"{was}, but now it is {after}" if after else f"{was}, but now with it"


def _option(name: str) -> str:
    if known := PARAMETERS.get(name):
        return parameter(known)
    return parameter(name[2:].replace("-", "_")) if name.startswith("--") else name


def _shown(name: str, value: Any, other: Any) -> str | None:
    """The value as a text, "" for a flag that is set, None for an option that is not given."""
    if value is None or value is False or value in ([], {}):
        return None
    if value is True:
        return ""
    return shown_hash(str(value)) if name.endswith("sha256") else _shortened(_written(value), _written(other))


def _written(value: Any) -> str:
    """A value as JSON, in single quotes if it has double ones; several values of an option are separated by commas."""
    if isinstance(value, list):
        return ", ".join(map(_as_json, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={_as_json(item)}" for key, item in value.items())
    return _as_json(value)


def _as_json(value: Any) -> str:
    if isinstance(value, str) and '"' in value and "'" not in value and value.isprintable():
        return f"'{value}'"  # such as a schema
    return json.dumps(value, ensure_ascii=False)


def _shortened(text: str, other: str) -> str:
    """The part of a long text where it differs from another.

    >>> _shortened("same " * 20 + "old", "same " * 20 + "new")
    '…same same same same same same same same old'
    """
    if len(text) <= LONGEST_VALUE and len(other) <= LONGEST_VALUE:
        return text
    num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
    start = max(0, num_same - LONGEST_SAME)
    end = start + LONGEST_VALUE
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
