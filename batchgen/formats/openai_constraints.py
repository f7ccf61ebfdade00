"""Constraints on an answer's text in OpenAI's and vLLM's spelling: in a request's body, or in a row's `sampling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT, OUTPUTS = "response_format", "structured_outputs"
# Keys of vLLM's `structured_outputs`, and of its older `guided_*` options.
OURS = {
    "json": "json_schema", "json_object": "json_object", "regex": "regex", "choice": "choice", "grammar": "grammar",
}  # fmt: skip
GUIDED = {f"guided_{theirs}": ours for theirs, ours in OURS.items() if theirs != "json_object"}
CONSTRAINT_KEYS = {FORMAT, OUTPUTS, *GUIDED}
ANY_WHITESPACE = "disable_any_whitespace"


def read_constraint(given: Mapping[str, Any], within: str = "body") -> tuple[dict[str, Any], dict[str, str]]:
    """Our constraint options, and `given`'s name for each. Raises `ValueError` for anything unsupported."""
    options: dict[str, Any] = {}
    names: dict[str, str] = {}
    for place, found in (
        (FORMAT, _of_format(given.get(FORMAT), f"{within}.{FORMAT}")),
        (OUTPUTS, _of_outputs(given.get(OUTPUTS), f"{within}.{OUTPUTS}")),
        *((key, {ours: given[key]} if given.get(key) is not None else {}) for key, ours in GUIDED.items()),
    ):
        for ours in found:
            if ours in names or given.get(ours) is not None:
                raise ValueError(f"{names.get(ours, f'{within}.{ours}')} and {within}.{place} cannot be used together")
        options |= found
        names |= dict.fromkeys(found, f"{within}.{place}")
    return options, names


def _of_format(given: Any, name: str) -> dict[str, Any]:
    kind = given.get("type") if isinstance(given, Mapping) else given
    if kind is None or kind == "text":
        return {}
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema":
        raise ValueError(f"{name} is not one of text, json_object, json_schema")
    described = given.get("json_schema")
    if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping | bool):
        raise ValueError(f"{name}.json_schema.schema is missing")
    return {"json_schema": described["schema"]}


def _of_outputs(given: Any, name: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f'{name} is not an object such as {{"regex": "[a-z]+"}}')
    asked = {key: value for key, value in given.items() if value is not None and value is not False}
    if unknown := sorted(asked.keys() - OURS.keys() - {ANY_WHITESPACE}):
        raise ValueError(f"{name}.{unknown[0][:40]} is not supported: remove it")
    spaces = {} if given.get(ANY_WHITESPACE) is None else {"json_whitespace": _spaces(given[ANY_WHITESPACE])}
    return {OURS[key]: value for key, value in asked.items() if key in OURS} | spaces


def _spaces(is_disabled: Any) -> str:
    return "compact" if is_disabled else "any"
