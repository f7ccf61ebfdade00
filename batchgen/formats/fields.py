"""The fields of a Result that are written, and JSON that is safe to print."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchgen.records import Logprobs, Result

# DEL, C1 and bidirectional controls and line separators: JSON allows them unescaped, but a terminal must not see them,
# and some readers split lines on them. Escaped, they are the same string to every JSON parser.
UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
SURROGATES = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"  # replaces lone surrogates

PLAIN_FIELDS = (
    "id", "index", "sample_index", "prompt", "text", "finish_reason",
    "num_prompt_tokens", "num_output_tokens", "error", "metadata", "model",
)  # fmt: skip
PARSED = "parsed"  # only for rows with a schema
SUM, LOGPROBS = "cumulative_logprob", "logprobs"  # only for rows that ask for them
CHAT_FIELDS = ("messages", "reasoning", "tool_calls")  # only for conversations
ID_FIELDS = ("input_ids", "output_ids", "batch_index", "padded_length")
SOURCE = "source"


Rows = Literal["all", "answered", "failed"]


def _as_it_is(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How results are written. `ids` adds token ids and the batch; `csv_raw` leaves cells that look like formulas
    unescaped; `escape` is applied to text that goes to a terminal. `rows` selects which rows of an OpenAI Batch go into
    the file. Tables draw padding as `pad_token_id`. Formats that can store them keep the run's `facts`. `columns` names
    the fields of the parsed object that get columns of their own in a table; an empty tuple means the fields of the
    first row with an object, None no such columns.
    """

    ids: bool = False
    csv_raw: bool = False
    escape: Callable[[str], str] = _as_it_is
    rows: Rows = "all"
    pad_token_id: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None


def to_dict(result: Result, *, ids: bool = False) -> dict[str, Any]:
    """The result's fields in the order in which they are written; token ids and the batch only with `ids`."""
    names = names_of_fields(
        ids=ids,
        is_chat=result.messages is not None,
        has_logprobs=result.logprobs is not None,
        is_json=result.is_json,
    )
    return {name: value_of(result, name) for name in names}


def value_of(result: Result, name: str) -> Any:
    """A field of a result as a JSON value."""
    value = getattr(result, name)
    return value.to_dict() if isinstance(value, Logprobs) else value


def names_of_fields(
    *, ids: bool, is_chat: bool = False, has_logprobs: bool = False, is_json: bool = False
) -> tuple[str, ...]:
    """The fields in the order in which they are written: a conversation's after the text, the source last."""
    text, tokens = PLAIN_FIELDS.index("text") + 1, PLAIN_FIELDS.index("num_output_tokens") + 1
    told = ((PARSED,) if is_json else ()) + (CHAT_FIELDS if is_chat else ())
    likely = (SUM, LOGPROBS) if has_logprobs else ()
    more = ID_FIELDS if ids else ()
    return (*PLAIN_FIELDS[:text], *told, *PLAIN_FIELDS[text:tokens], *likely, *PLAIN_FIELDS[tokens:], *more, SOURCE)


def to_json(value: object) -> str:
    """One line of JSON that is safe to print: control characters and line separators are escaped, without loss.

    A lone surrogate (half a character), which strict parsers reject even when escaped, becomes U+FFFD.
    """
    text = whole_characters(json.dumps(value, ensure_ascii=False, allow_nan=False))
    return UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def whole_characters(text: str) -> str:
    """The text with each lone surrogate (half a character) replaced by U+FFFD, because it cannot be encoded.
    >>> whole_characters("a smile \\ud83e") == "a smile \\ufffd"
    True
    """
    return SURROGATES.sub("\ufffd", text)


def to_bytes(text: str) -> bytes:
    """Encode text as UTF-8; a lone surrogate, which has no UTF-8 encoding, becomes U+FFFD."""
    return whole_characters(text).encode("utf-8")
