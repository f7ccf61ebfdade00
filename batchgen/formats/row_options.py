"""Apply a row's own `sampling` object to the run's options.

Knows nothing about files: the reader adds the row's location to the errors raised here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from batchgen.formats.json_values import parse_json
from batchgen.formats.openai_constraints import CONSTRAINT_KEYS, read_constraint
from batchgen.records import FieldError, SamplingParams, near_name, options_of
from batchgen.records.sampling import CONSTRAINT_FIELDS


def row_keys(record: type = SamplingParams) -> list[str]:
    """The options that a row may set: all except those of the run, such as beams, which are the same in a batch."""
    return [name for name, item in options_of(record).items() if not item.option.of_run]


def override(run: SamplingParams, given: object, names: Mapping[str, str] | None = None) -> SamplingParams:
    """The run's options, overridden by those in a row's `sampling`; null keeps the run's value.

    A greedy row drops the run's options that only affect sampling, and a row with its own constraint drops the run's.
    Constraints may also be in OpenAI's and vLLM's spelling. Raises a one-line `ValueError`, which names the row's
    options by their keys (as in `names`), and the run's as "the run's …".
    >>> run = SamplingParams(temperature=1.0, top_p=0.9)
    >>> override(run, {"temperature": 0, "max_new_tokens": 5}) == SamplingParams(max_new_tokens=5)
    True
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            'sampling must be an object such as {"temperature": 0.7}; if the column means something else, rename it'
        )
    constraint, spellings = read_constraint(given, "sampling")
    given = constraint | {key: value for key, value in given.items() if key not in CONSTRAINT_KEYS}
    for key in given:
        _check_key(key, row_keys(type(run)))
    own: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    names = {key: f"sampling.{key}" for key in own} | spellings | {k: n for k, n in (names or {}).items() if k in own}
    try:
        return replace(run, **{**_left_behind(run, own), **own})
    except FieldError as error:
        raise ValueError(error.named(lambda field: names.get(field, f"the run's {field}"))) from None


def with_choices(sampling: object, columns: Mapping[str, Any], field: str | None) -> object:
    """A row's `sampling` with the choices from its column `field`: a list, or a cell with a list as JSON.

    A constraint in the row's own `sampling` takes precedence. Raises a one-line `ValueError`.
    """
    if field is None or (isinstance(sampling, Mapping) and _is_constrained(sampling)):
        return sampling
    if field not in columns:
        raise ValueError(f"no field {field} (see --choices-field)")
    choices = columns[field]
    if isinstance(choices, str) and choices.lstrip().startswith("["):
        try:
            choices = parse_json(choices)
        except ValueError as error:
            raise ValueError(f"the field {field} is not valid JSON: {error}") from None
    if not isinstance(choices, list) or not choices:
        raise ValueError(f'the field {field} is not a list of choices such as ["yes", "no"]')
    if sampling is not None and not isinstance(sampling, Mapping):
        return sampling
    return {**(sampling or {}), "choice": choices}


def _left_behind(run: SamplingParams, own: Mapping[str, Any]) -> dict[str, Any]:
    """The run's options that a row does not inherit, reset to their defaults."""
    is_greedy, is_constrained = own.get("temperature") == 0, _is_constrained(own)
    return {
        name: item.default
        for name, item in options_of(type(run)).items()
        if (is_greedy and item.option.only_sampled) or (is_constrained and name in CONSTRAINT_FIELDS)
    }


def _is_constrained(given: Mapping[str, Any]) -> bool:
    """Whether options contain a constraint; the schemas `{}` and `false` count as constraints, too."""
    named = [name for name in (*CONSTRAINT_FIELDS, *CONSTRAINT_KEYS) if given.get(name) is not None]
    return any(name != "json_object" or given[name] for name in named)


def _check_key(key: object, keys: list[str]) -> None:
    if key in keys:
        return
    if key in options_of(SamplingParams):
        raise ValueError(f"sampling.{key} cannot be set per row: set {key} for the whole run")
    near = near_name(str(key), keys)
    rest = f": did you mean {near}?" if near else f"; known keys: {', '.join(keys)}"
    raise ValueError(f"sampling has no key {json.dumps(str(key)[:40])}{rest}")
