"""The content of a source: its bytes, and its lines, which are limited to the length of a row."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, cast

from batchgen.errors import InputError
from batchgen.formats.compression import damage
from batchgen.records import LONGEST_ROW

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
SKIPPED_AT_ONCE = 2**20
Line = tuple[int, bytes | None]  # its number from 1; None if it is too long to be a row


@dataclass(slots=True)
class Content:
    """An open source, as readers get it. `lines` still have their newlines; `say` reports what was guessed."""

    name: str
    stream: io.BufferedReader
    on_blank: Callable[[], None] = lambda: None
    first_line: int = 1
    say: Callable[[str], None] = lambda line: None
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
        """The first line that is not blank, without consuming it."""
        if (first := next(self.rows(), None)) is None:
            return None
        self.lines = chain([first], self.lines)
        return first[1]

    def peek_lines(self, most: int) -> list[bytes]:
        """The first lines, unchanged, at most 8 MiB in total, without consuming them."""
        taken: list[bytes] = []
        room = LONGEST_ROW
        while len(taken) < most and room and (line := self.read_line(room)):
            taken.append(line)
            room -= len(line)
        self.put_back(b"".join(taken))
        return [taken[0].removeprefix(UTF8_BOM), *taken[1:]] if taken else []

    def peek_line(self) -> bytes:
        """The first line that is not blank, unchanged, without consuming it."""
        taken: list[bytes] = []
        room = LONGEST_ROW
        while room and (line := self.read_line(room)):
            taken.append(line)
            room -= len(line)
            if not line.removeprefix(UTF8_BOM).isspace():
                break
        self.put_back(b"".join(taken))
        return taken[-1].removeprefix(UTF8_BOM) if taken else b""

    def start(self) -> bytes:
        """The first few bytes; damaged content is reported by its reader instead."""
        try:
            return self.stream.peek(1)
        except damage(OSError):
            return b""

    def read_line(self, most: int) -> bytes:
        """The next line of the stream, or its first `most` bytes. Raises `InputError`."""
        return _read(self.stream, most, self.name, self.first_line - 1)

    def read(self, most: int) -> bytes:
        """The next `most` bytes of the stream, fewer only at its end. Raises `InputError`."""
        with _in_one_line(self.name, self.first_line - 1):
            return self.stream.read(most)

    def put_back(self, taken: bytes) -> None:
        """Put back bytes that were taken from the beginning of the stream, so that they are read again."""
        if type(self.stream) is io.BufferedReader and self.stream.seekable():
            self.stream.seek(-len(taken), io.SEEK_CUR)
        else:
            self.stream = io.BufferedReader(cast(io.RawIOBase, _Again(taken, self.stream)))
        self.lines = read_lines(self.stream, self.name, self.first_line)

    def at(self, number: int) -> str:
        """A line's location, for messages."""
        return f"{self.name}:{number}"


class _Again(io.RawIOBase):
    """A stream of bytes that were already read, followed by the stream they came from."""

    def __init__(self, taken: bytes, stream: io.BufferedReader) -> None:
        self._taken = taken
        self._place = 0
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._taken[self._place : self._place + len(buffer)]
        self._place += len(piece)
        if not piece:
            self._taken, self._place = b"", 0
            piece = self._stream.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def read_lines(stream: io.BufferedReader, name: str, first_line: int = 1) -> Iterator[Line]:
    r"""Numbered lines, split on \n only, the first without a byte order mark; a line longer than a row is None."""
    number = first_line - 1
    while line := _read(stream, LONGEST_ROW, name, number):
        number += 1
        is_whole = len(line) < LONGEST_ROW or line.endswith(b"\n")
        if number == 1:
            refuse_utf16(line, name)
            line = line.removeprefix(UTF8_BOM)
        yield number, line if is_whole else None
        while line and not is_whole:
            line = _read(stream, SKIPPED_AT_ONCE, name, number)
            is_whole = line.endswith(b"\n")


def refuse_utf16(start: bytes, name: str) -> None:
    if start.startswith(UTF16_BOMS):
        raise InputError(f"{name} is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`")


def _read(stream: io.BufferedReader, most: int, name: str, number: int) -> bytes:
    """The next line or its beginning. Damaged content fails here, after the rows that are intact."""
    with _in_one_line(name, number):
        return stream.readline(most)


@contextmanager
def _in_one_line(name: str, number: int) -> Iterator[None]:
    try:
        yield
    except damage() as error:
        reason = "it ends too early" if isinstance(error, EOFError) else str(error)
        raise InputError(f"{name} is damaged after line {number}: {reason}; download or compress it again") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
