"""JSON Lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from batchgen.formats.content import Content
from batchgen.formats.fields import WriteOptions, to_bytes, to_dict, to_json
from batchgen.formats.rows import ReadOptions, Row, parse_json, row_of_object
from batchgen.records import Result


def read_jsonl(content: Content, options: ReadOptions) -> Iterator[Row]:
    """The prompt in `--field`, else `prompt` or `text`; `id` is kept; `sampling` holds the row's own options; the rest
    is metadata.
    """
    for where, value in read_values(content):
        yield value if isinstance(value, Row) else row_of_object(value, where, options)


def read_values(content: Content) -> Iterator[tuple[str, object]]:
    """Each line's place and its JSON value, or the bad `Row` that it is."""
    for number, line in content.rows():
        where = content.at(number)
        if line is None:
            yield where, content.too_long(number)
            continue
        try:
            yield where, parse_json(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield where, content.not_utf8(number, line, error)
        except ValueError as problem:
            yield where, Row(error=f"{where}: not valid JSON: {problem}", where=where)


def write_jsonl(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """One JSON object a row."""
    for result in results:
        stream.write(to_bytes(to_json(to_dict(result, ids=options.ids)) + "\n"))
        stream.flush()
