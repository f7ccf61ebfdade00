"""The Arrow types of a result's own columns, and values as they take them. Imports pyarrow nowhere: it is handed in."""

from __future__ import annotations

from typing import Any

from batchgen.formats.columns import cell_text
from batchgen.formats.fields import LOGPROBS, SUM, whole_characters

COUNTS = {"index", "sample_index", "num_prompt_tokens", "num_output_tokens", "batch_index", "padded_length"}
TOKENS = {"input_ids", "output_ids"}


def type_of(name: str, pa: Any) -> Any:
    """The type of a field of a result."""
    if name in COUNTS:
        return pa.int64()
    if name in TOKENS:
        return pa.list_(pa.int64())
    if name == SUM:
        return pa.float64()
    return _logprobs_type(pa) if name == LOGPROBS else pa.string()


def _logprobs_type(pa: Any) -> Any:
    alternative = pa.struct([("token_id", pa.int64()), ("logprob", pa.float64())])
    return pa.struct(
        [
            ("token_ids", pa.list_(pa.int64())),
            ("tokens", pa.list_(pa.string())),
            ("token_logprobs", pa.list_(pa.float64())),
            ("top", pa.list_(pa.list_(alternative))),
        ]
    )


def to_cell(value: Any, kind: Any, pa: Any) -> Any:
    """A value as its column's type takes it."""
    if value is None:
        return None
    if kind == pa.string():
        return whole_characters(cell_text(value))
    return _nested_logprobs(value) if pa.types.is_struct(kind) else value


def _nested_logprobs(value: dict[str, Any]) -> dict[str, Any]:
    top = [[{"token_id": token, "logprob": logprob} for token, logprob in pairs] for pairs in value["top"]]
    return {**value, "tokens": [whole_characters(token) for token in value["tokens"]], "top": top}
