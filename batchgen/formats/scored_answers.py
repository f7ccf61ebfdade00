"""Read scored rows back from the records that a run has written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from batchgen.formats.fields import LOGPROBS, SOURCE
from batchgen.formats.score_fields import BEST
from batchgen.records import Logprobs, Result, RowScore, ScoredKind, ScoredText

NUMBERS = ("logprob", "num_tokens", "is_greedy", "perplexity")
KNOWN = {"id", "index", "messages", "prompt", "text", "continuation", "choices", "error", "metadata", "model", SOURCE}
KNOWN |= {*NUMBERS, *BEST, LOGPROBS}
ReadLogprobs = Callable[[Mapping[str, Any]], Logprobs]


def is_scored(values: Mapping[str, Any]) -> bool:
    """Whether a record is from a scored row, not from a generated one."""
    return "finish_reason" not in values and ("best" in values or {"logprob", "num_tokens"} <= values.keys())


def scored_result(values: Mapping[str, Any], number: int, read_logprobs: ReadLogprobs) -> Result:
    """The Result of a record or of a table's row; `number` is its index if the record does not have one."""
    values, more = _spread(values)
    kind, error = _kind(values), values.get("error") or None
    texts = () if error is not None else tuple(_text(found, read_logprobs) for found in _found(values, kind))
    metadata = {name: value for name, value in values.items() if name not in KNOWN}
    given = values.get("continuation") if kind == "continuation" else values.get("text")
    return Result(
        index=int(values.get("index") or number),
        id=values.get("id"),
        sample_index=0,
        prompt=values.get("prompt") or "",
        text="" if kind == "choices" else given or "",
        finish_reason="stop" if error is None else "error",
        num_prompt_tokens=0,
        num_output_tokens=sum(text.num_tokens for text in texts),
        error=error,
        metadata=metadata | more,
        model=values.get("model") or "",
        source=values.get(SOURCE) or None,
        messages=values.get("messages"),
        score=RowScore(kind, texts),
    )


def _spread(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A record with all its fields, and its metadata; tables keep fields that their first row lacks in the metadata."""
    more = values.get("metadata")
    if not isinstance(more, dict):
        return values, {}
    lacking = {name for name in more.keys() & KNOWN if values.get(name) in (None, "")}
    own = {name: more[name] for name in lacking}
    return {**values, **own}, {name: value for name, value in more.items() if name not in lacking}


def _kind(values: Mapping[str, Any]) -> ScoredKind:
    """The kind of a scored row: a table has the columns of all kinds, and the filled ones decide."""
    if values.get("choices") is not None or ("best" in values and "logprob" not in values):
        return "choices"
    if values.get("continuation") is not None:
        return "continuation"
    return "reply" if values.get("messages") else "text"


def _found(values: Mapping[str, Any], kind: ScoredKind) -> list[Mapping[str, Any]]:
    if kind != "choices":
        return [{**values, "text": values.get("continuation") if kind == "continuation" else values.get("text")}]
    choices = values["choices"]
    found: list[Mapping[str, Any]] = json.loads(choices) if isinstance(choices, str) else choices
    return found


def _text(found: Mapping[str, Any], read_logprobs: ReadLogprobs) -> ScoredText:
    logprobs = found.get(LOGPROBS)
    return ScoredText(
        found["text"] or "",
        float(found["logprob"]),
        int(found["num_tokens"]),
        str(found["is_greedy"]).lower() == "true",
        read_logprobs(logprobs) if isinstance(logprobs, Mapping) else None,
    )
