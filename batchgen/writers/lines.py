"""JSON Lines and plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from batchgen.records import Result
from batchgen.writers.fields import WriteOptions, to_bytes, to_dict, to_json


def write_jsonl(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """One JSON object a row."""
    for result in results:
        stream.write(to_bytes(to_json(to_dict(result, ids=options.ids)) + "\n"))
        stream.flush()


def write_text(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    r"""The generated text alone, one line a row: newlines inside it are written \n, a failed row is an empty line."""
    for result in results:
        line = result.text.replace("\r", "\\r").replace("\n", "\\n")
        stream.write(to_bytes(options.escape(line) + "\n"))
        stream.flush()
