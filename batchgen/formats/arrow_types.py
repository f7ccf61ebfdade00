"""The Arrow types of a result's own columns, and their values. Never imports pyarrow: it is passed in as `pa`."""

from __future__ import annotations

from typing import Any

from batchgen.formats.columns import cell_text
from batchgen.formats.fields import LOGPROBS, SUM, whole_characters

COUNTS = {
    "index", "sample_index", "num_prompt_tokens", "num_output_tokens", "batch_index", "padded_length",
    "num_tokens", "best", "best_per_token", "best_per_byte",
}  # fmt: skip
NUMBERS = {SUM, "logprob", "perplexity"}
SWITCHES = {"is_greedy", "is_tie"}
CHOICES = "choices"
TOKENS = {"input_ids", "output_ids"}


def type_of(name: str, pa: Any) -> Any:
    """The Arrow type of a field of a result."""
    if name in COUNTS:
        return pa.int64()
    if name in TOKENS:
        return pa.list_(pa.int64())
    if name in NUMBERS:
        return pa.float64()
    if name in SWITCHES:
        return pa.bool_()
    if name == CHOICES:
        return pa.list_(_choice_type(pa))
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


def _choice_type(pa: Any) -> Any:
    numbers = [("logprob", pa.float64()), ("num_tokens", pa.int64()), ("is_greedy", pa.bool_())]
    return pa.struct([("text", pa.string()), *numbers, (LOGPROBS, _logprobs_type(pa))])


def to_cell(value: Any, kind: Any, pa: Any) -> Any:
    """Convert a value to what its column's type accepts."""
    if value is None:
        return None
    if kind == pa.string():
        return whole_characters(cell_text(value))
    if pa.types.is_struct(kind):
        return _nested_logprobs(value)
    return list(map(_choice, value)) if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type) else value


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    found = choice.get(LOGPROBS)
    told = {} if found is None else {LOGPROBS: _nested_logprobs(found)}
    return {**choice, "text": whole_characters(choice["text"]), **told}


def _nested_logprobs(value: dict[str, Any]) -> dict[str, Any]:
    top = [[{"token_id": token, "logprob": logprob} for token, logprob in pairs] for pairs in value["top"]]
    return {**value, "tokens": [whole_characters(token) for token in value["tokens"]], "top": top}
