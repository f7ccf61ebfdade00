"""A row's own `sampling` object over the run's options.

Knows nothing of files: the reader puts the row's place before what is raised here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from batchgen.records import SamplingParams

# What a row may name, and the type of each. Beams are the run's: a batch searches with one number of them.
KEYS: dict[str, type] = {
    field.name: type(field.default) for field in fields(SamplingParams) if field.name != "num_beams"
}
# Options that only sampling has: a row that asks for greedy leaves the run's behind.
OFF_WHEN_GREEDY: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "num_samples": 1}
MOST = 2**63 - 1  # what a tensor holds


def override(run: SamplingParams, given: object, names: Mapping[str, str] | None = None) -> SamplingParams:
    """The run's options, with those that a row's `sampling` names in their place; null leaves the run's.

    Raises `ValueError`, one line: the row's options under their keys (as `names` spells them), the run's as flags.

    >>> run = SamplingParams(temperature=1.0, top_p=0.9)
    >>> override(run, {"temperature": 0, "max_new_tokens": 5}) == SamplingParams(max_new_tokens=5)
    True
    """
    if not isinstance(given, Mapping):
        raise ValueError('sampling must be an object such as {"temperature": 0.7}; rename a column that means other')
    for key in given:
        _check_key(key)
    names = {key: f"sampling.{key}" for key in KEYS} | dict(names or {})
    own = {key: _checked(key, value, names[key]) for key, value in given.items() if value is not None}
    left_behind = OFF_WHEN_GREEDY if own.get("temperature") == 0 else {}
    try:
        return replace(run, **{**left_behind, **own})
    except ValueError as error:
        raise ValueError(_with_keys(str(error), {key: names[key] for key in own})) from None


def _check_key(key: object) -> None:
    if key == "num_beams":
        raise ValueError("sampling.num_beams cannot be a row's own: give --num-beams to the whole run")
    if key not in KEYS:
        shown = json.dumps(str(key)[:40])
        raise ValueError(f"sampling has no key {shown}; it may have {', '.join(KEYS)}")


def _checked(key: str, value: object, name: str) -> Any:
    """The value in the option's own type; `name` is what errors call it."""
    kind = KEYS[key]
    if kind is tuple:
        return _stops(value, name)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        wanted = "a whole number such as 20" if kind is int else "a number such as 0.7"
        raise ValueError(f"{name} must be {wanted}")
    if abs(value) > MOST:
        raise ValueError(f"{name} is beyond {MOST}")
    return kind(value)


def _stops(value: object, name: str) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"{name} must be a string or a list of strings")
    if any("\ud800" <= sign <= "\udfff" for stop in stops for sign in stop):
        raise ValueError(f"{name} holds a lone surrogate (half a character)")
    return tuple(stops)


def _with_keys(message: str, own: Mapping[str, str]) -> str:
    """The message of `SamplingParams`, its flags under the names that the row has for them."""

    def name(flag: re.Match[str]) -> str:
        return own.get(flag[1].replace("-", "_"), flag[0])

    return re.sub(r"--([a-z][a-z-]*)", name, message)
