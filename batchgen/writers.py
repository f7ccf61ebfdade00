"""Results to bytes: JSON Lines and plain text. Every row is flushed, so that a reader down the pipe sees it at once.

Knows nothing of terminals; what draws tables is `render`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from batchgen.records import Result

# DEL, C1 and bidirectional controls and line separators: JSON may leave them raw, a terminal must not see them, and
# some readers split lines on them. An escape is the same string to every JSON parser.
UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")

PLAIN_FIELDS = (
    "id", "index", "sample_index", "prompt", "text", "finish_reason",
    "num_prompt_tokens", "num_output_tokens", "error", "metadata", "model",
)  # fmt: skip
ID_FIELDS = ("input_ids", "output_ids", "batch_index", "padded_length")


def to_dict(result: Result, *, ids: bool = False) -> dict[str, Any]:
    """The result's fields in the order they are written; token ids and the batch only with `ids`."""
    return {name: getattr(result, name) for name in (PLAIN_FIELDS + ID_FIELDS if ids else PLAIN_FIELDS)}


def to_json(value: object) -> str:
    """One line of JSON that is safe to print: characters that move a cursor or a line are escaped, losslessly."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def write_jsonl(results: Iterable[Result], stream: TextIO, *, ids: bool = False) -> None:
    """One JSON object a row."""
    for result in results:
        stream.write(to_json(to_dict(result, ids=ids)) + "\n")
        stream.flush()


def write_text(results: Iterable[Result], stream: TextIO, *, escape: Callable[[str], str] = lambda text: text) -> None:
    r"""The generated text alone, one line a row: newlines inside it are written \n, a failed row is an empty line."""
    for result in results:
        line = result.text.replace("\r", "\\r").replace("\n", "\\n")
        stream.write(escape(line) + "\n")
        stream.flush()
