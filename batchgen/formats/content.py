"""What is in a source: its bytes, and its lines, none of which may be longer than a row."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar

from batchgen.errors import InputError
from batchgen.formats.compression import damage
from batchgen.records import LONGEST_ROW

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
SKIPPED_AT_ONCE = 2**20
Line = tuple[int, bytes | None]  # its number from 1; None where it is too long to be a row


@dataclass(slots=True)
class Content:
    """An open source, as a reader gets it. `lines` have their newlines still."""

    name: str
    stream: io.BufferedReader
    on_blank: Callable[[], None] = lambda: None
    first_line: int = 1
    lines: Iterator[Line] = field(init=False)
    TOO_LONG: ClassVar[str] = f"the line is longer than {LONGEST_ROW // 2**20} MiB"

    def __post_init__(self) -> None:
        self.lines = read_lines(self.stream, self.name, self.first_line)

    def rows(self) -> Iterator[Line]:
        r"""Lines that are not blank, without their \n or \r\n."""
        for number, line in self.lines:
            line = line and line.removesuffix(b"\n").removesuffix(b"\r")
            if line is not None and (not line or line.isspace()):
                self.on_blank()
            else:
                yield number, line

    def peek_row(self) -> bytes | None:
        """The first line that is not blank; it will be read again."""
        if (first := next(self.rows(), None)) is None:
            return None
        self.lines = chain([first], self.lines)
        return first[1]

    def starts_with(self, magic: bytes) -> bool:
        """Whether these are its first bytes. What is damaged is told by its reader."""
        try:
            return self.stream.peek(len(magic)).startswith(magic)
        except damage(OSError):
            return False

    def at(self, number: int) -> str:
        """A line's place, for a person."""
        return f"{self.name}:{number}"


def read_lines(stream: io.BufferedReader, name: str, first_line: int = 1) -> Iterator[Line]:
    r"""Numbered lines, split on \n only; the first without a byte order mark. None longer than a row is held."""
    number = first_line - 1
    while line := _read(stream, LONGEST_ROW, name, number):
        number += 1
        is_whole = len(line) < LONGEST_ROW or line.endswith(b"\n")
        if number == 1:
            if line.startswith(UTF16_BOMS):
                raise InputError(f"{name} is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`")
            line = line.removeprefix(UTF8_BOM)
        yield number, line if is_whole else None
        while line and not is_whole:
            line = _read(stream, SKIPPED_AT_ONCE, name, number)
            is_whole = line.endswith(b"\n")


def _read(stream: io.BufferedReader, most: int, name: str, number: int) -> bytes:
    """The next line or its beginning. What is damaged fails here, behind the rows that are whole."""
    try:
        return stream.readline(most)
    except damage() as error:
        reason = "it ends too early" if isinstance(error, EOFError) else str(error)
        raise InputError(f"{name} is damaged after line {number}: {reason}; fetch or pack it again") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
