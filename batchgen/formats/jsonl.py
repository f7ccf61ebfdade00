"""JSON Lines: one object per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from batchgen.formats.content import Content
from batchgen.formats.fields import WriteOptions, to_bytes, to_dict, to_json
from batchgen.formats.json_values import parse_json, read_members, too_heavy, weigh_json
from batchgen.formats.rows import ReadOptions, Row, row_of_columns, row_of_object
from batchgen.formats.score_fields import score_dict
from batchgen.records import Result


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A line's location and its JSON value; or what is wrong with it, and the members that could be read before."""

    source: str
    value: Any
    num_bytes: int
    problem: str | None = None


def read_jsonl(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read one row per line: the prompt is in `--field`, or by default in `prompt` or `text`; `id` is kept, `sampling`
    has the row's own options, and the rest is metadata.
    """
    for line in read_values(content):
        if line.problem:
            yield row_of_columns(line.value, line.source, options, problem=line.problem, num_bytes=line.num_bytes)
        else:
            yield row_of_object(line.value, line.source, options, line.num_bytes)


def read_values(content: Content) -> Iterator[JsonLine]:
    """The value of each line that is not blank."""
    for number, line in content.rows():
        yield _read_value(line, content.at(number))


def _read_value(line: bytes | None, source: str) -> JsonLine:
    if line is None:
        return JsonLine(source, {}, 0, Content.TOO_LONG)
    num_bytes = weigh_json(line)
    if problem := too_heavy(num_bytes):
        return JsonLine(source, {}, 0, problem)
    try:
        return JsonLine(source, parse_json(line.decode("utf-8")), num_bytes)
    except UnicodeDecodeError as error:
        members = read_members(line.decode("utf-8", "replace"))
        return JsonLine(source, members, num_bytes, f"not UTF-8 at byte {error.start} of the line")
    except ValueError as error:
        return JsonLine(source, read_members(line.decode("utf-8")), num_bytes, f"not valid JSON: {error}")


def write_jsonl(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """Write one JSON object per row."""
    for result in results:
        fields = score_dict(result) if result.score else to_dict(result, ids=options.ids)
        stream.write(to_bytes(to_json(fields) + "\n"))
        stream.flush()
