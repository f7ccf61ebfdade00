"""JSON that is not one line per row: an array of rows, or a series of objects that span several lines.

Reads one value at a time, whatever the size of the file. Broken JSON ends the run after the rows before it, because
there is no way to tell where the next row begins.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator

from batchgen.errors import InputError
from batchgen.formats.content import UTF8_BOM, Content
from batchgen.formats.json_values import (
    LENIENT,
    explain,
    parse_json,
    read_members,
    skip_whitespace,
    too_heavy,
    weigh_json,
)
from batchgen.formats.rows import ReadOptions, Row, row_of_columns, row_of_object, row_of_text
from batchgen.records import LONGEST_ROW

CHUNK = 2**16


def read_json(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read one row per object, as in JSON Lines; a string in an array is a prompt."""
    for line, text in _values(_Reader(content)):
        yield _row(text, content.at(line), options)


def _row(text: str, source: str, options: ReadOptions) -> Row:
    num_bytes = weigh_json(text)
    if problem := too_heavy(num_bytes):
        return Row(error=problem, source=source)
    try:
        value, problem = parse_json(text), None
    except ValueError as error:  # such as NaN: the end of the value is still clear
        value, problem = read_members(text), f"not valid JSON: {error}"
    if problem:
        return row_of_columns(value, source, options, problem=problem, num_bytes=num_bytes)
    if isinstance(value, str):
        return row_of_text(value, source, options)
    return row_of_object(value, source, options, num_bytes)


def _values(reader: _Reader) -> Iterator[tuple[int, str]]:
    """The line on which each value begins, and its text."""
    if reader.next_sign() != "[":
        while reader.next_sign():
            yield reader.take_value()
        return
    reader.skip("[")
    if reader.next_sign() != "]":
        yield reader.take_value()
        while reader.next_sign() != "]":
            reader.skip(",")
            yield reader.take_value()
    reader.skip("]")
    if reader.next_sign():
        raise InputError(f"{reader.place}: text after the end of the JSON array")


class _Reader:
    """Reads one value after another from a stream, and keeps track of the line."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._start = 0
        self._line = content.first_line
        self._is_first = True
        self._at_end = False

    @property
    def place(self) -> str:
        return self._content.at(self._line)

    def next_sign(self) -> str:
        """The next character that is not whitespace, without consuming it; "" at the end."""
        while True:
            self._go_on(skip_whitespace(self._text, self._start))
            if self._start < len(self._text) or not self._read_on():
                return self._text[self._start : self._start + 1]

    def skip(self, sign: str) -> None:
        if (found := self.next_sign()) != sign:
            there = f"found {found!r}" if found else "the file ended"
            raise InputError(f"{self.place}: not valid JSON: expecting {sign!r}, but {there}")
        self._go_on(self._start + 1)

    def take_value(self) -> tuple[int, str]:
        """The line on which the next value begins, and its text. Raises `InputError` for invalid JSON."""
        self.next_sign()
        line, end = self._line, self._end_of_value()
        text = self._text[self._start : end]
        self._go_on(end)
        return line, text

    def _end_of_value(self) -> int:
        while True:
            problem: json.JSONDecodeError | None = None
            try:
                _, end = LENIENT.raw_decode(self._text, self._start)
                if end < len(self._text) or self._at_end:  # otherwise a number may continue
                    return end
            except json.JSONDecodeError as error:
                problem = error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.place}: not valid JSON: {explain(error)}") from None
            size = len(self._text) - self._start
            if size > LONGEST_ROW:
                raise InputError(f"{self.place}: a JSON value longer than {LONGEST_ROW // 2**20} MiB, or invalid")
            if not self._read_on(max(CHUNK, size)) and problem:
                line = self._line + self._text.count("\n", self._start, problem.pos)
                raise InputError(f"{self._content.at(line)}: not valid JSON: {problem.msg}")

    def _go_on(self, start: int) -> None:
        self._line += self._text.count("\n", self._start, start)
        self._start = start

    def _read_on(self, size: int = CHUNK) -> bool:
        """Read more of the stream and discard consumed text; return False at the end."""
        if self._at_end:
            return False
        data = self._content.read(size)
        self._at_end = len(data) < size
        if self._is_first:
            data, self._is_first = data.removeprefix(UTF8_BOM), False
        try:
            more = self._decoder.decode(data, self._at_end)
        except UnicodeDecodeError:
            raise InputError(f"{self._content.name} is not UTF-8 after line {self._line}") from None
        self._text, self._start = self._text[self._start :] + more, 0
        return True
