"""Cuts input files into parts that workers can read independently, with the index of each part's first row.

Every file is read once, to its end: to find where rows begin, and to detect later whether it has changed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

from batchgen.formats.compression import unpack
from batchgen.formats.content import Content, Line
from batchgen.formats.delimited import DELIMITERS, data_records
from batchgen.formats.parquet import row_groups
from batchgen.formats.reading import ReadOptions, choose_format, read_content
from batchgen.formats.sniff import WHOLE
from batchgen.runs.ray.file_parts import FilePart, Header
from batchgen.runs.ray.inputs import InputFile

# Parts may begin at every GRAIN-th row and have a multiple of GRAIN rows, so that workers get similar shares.
GRAIN = 64
MOST_ROWS = 4096
PARTS_A_WORKER = 16
BUFFER = 2**20
NOT_LINES = {"json", WHOLE}
UNCUT = {*NOT_LINES, "openai-batch"}  # its ids must be unique in the whole file


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place in a file where a part may begin."""

    row: int
    offset: int = 0
    line: int = 1
    group: int = 0


@dataclass(frozen=True, slots=True)
class CutFile:
    """What is known about a file: its format, rows, possible part beginnings, blank lines, and a hash of its bytes."""

    file: InputFile
    form: str
    num_rows: int
    num_blanks: int
    marks: tuple[_Mark, ...]
    header: Header
    digest: str


def cut_file(
    file: InputFile, options: ReadOptions, every: int = GRAIN, say: Callable[[str], None] = lambda line: None
) -> CutFile:
    """Read a whole file and record where every `every`-th row begins; a compressed file has only one beginning.

    Guesses about it are reported to `say`. Raises `InputError` if no row can be read from it.
    """
    raw = _Hashed(file.open())
    blanks: list[None] = []
    with cast(io.BufferedReader, io.BufferedReader(raw, BUFFER)) as stream:
        unpacked = unpack(stream, file.name, file.packing)
        content = Content(file.name, unpacked, lambda: blanks.append(None), say=say)
        form = choose_format(content, file.form, options)
        is_whole = unpacked is not stream or form in UNCUT
        if form == "parquet":
            marks, num_rows, header = _mark_groups(content)
        else:
            marks, num_rows, header = _mark_rows(content, form, options, every)
        while unpacked.read(BUFFER):
            pass
        raw.read_on()
    begins = (_Mark(0),) if is_whole else tuple(marks)
    return CutFile(file, form, num_rows, len(blanks), begins, () if is_whole else header, raw.hexdigest)


def _mark_groups(content: Content) -> tuple[list[_Mark], int, Header]:
    sizes = row_groups(content)
    content.stream.seek(0)
    starts = [sum(sizes[:group]) for group in range(len(sizes))]
    marks = [_Mark(row, line=row + 1, group=group) for group, row in enumerate(starts)]
    return marks or [_Mark(0)], sum(sizes), ()


def _mark_rows(content: Content, form: str, options: ReadOptions, every: int) -> tuple[list[_Mark], int, Header]:
    if form in NOT_LINES:
        return [_Mark(0)], sum(1 for _ in read_content(content, form, options)), ()
    places = _Places(content)
    marks: list[_Mark] = []
    header: Header = ()
    row = -1
    for row, number in enumerate(_first_lines(content, form, options)):
        if row == 0:
            marks.append(_Mark(0))
            header = places.lines_before(number) if form in DELIMITERS else ()
        elif row % every == 0:
            marks.append(_Mark(row, places.offsets[number], number))
        places.forget_before(number)
    return marks or [_Mark(0)], row + 1, header


def _first_lines(content: Content, form: str, options: ReadOptions) -> Iterator[int]:
    """Yield the number of the line that each row begins with."""
    if form in DELIMITERS:
        return (record.number for _header, record in data_records(content, options, form))
    return (number for number, _line in content.rows())


class _Places:
    """Records the byte offset of each line, and the first lines, while a reader takes them."""

    def __init__(self, content: Content) -> None:
        self.offsets: dict[int, int] = {}
        self._beginning: list[Line] = []
        self._stream = content.stream
        content.lines = self._watch(content.lines)

    def _watch(self, lines: Iterator[Line]) -> Iterator[Line]:
        offset: int | None = None  # where the next line begins; the first may have lost its byte order mark
        for number, line in lines:
            self.offsets[number] = offset or 0
            if len(self._beginning) < GRAIN:
                self._beginning.append((number, line))
            yield number, line
            offset = self._stream.tell() if offset is None or line is None else offset + len(line)

    def forget_before(self, number: int) -> None:
        for before in [line for line in self.offsets if line < number]:
            del self.offsets[before]

    def lines_before(self, number: int) -> Header:
        return tuple((place, line) for place, line in self._beginning if place < number and line is not None)


class _Hashed(io.RawIOBase):
    """A stream that hashes its bytes once each, from beginning to end, even if some are read twice or skipped."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._hash = blake2b(digest_size=16)
        self._hashed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        start = self._stream.tell()
        size = self._stream.readinto(buffer)
        if start <= self._hashed < start + size:
            self._hash.update(memoryview(buffer)[self._hashed - start : size])
            self._hashed = start + size
        return size

    def read_on(self) -> None:
        """Hash what was not read."""
        self._stream.seek(self._hashed)
        while piece := self._stream.read(BUFFER):
            self._hash.update(piece)
            self._hashed += len(piece)

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        self._stream.close()
        super().close()


def choose_part_rows(num_rows: int, num_workers: int) -> int:
    """Choose the rows per part: each worker gets several parts, but none so small that its slots keep running empty.

    >>> choose_part_rows(100, 2), choose_part_rows(10_000, 2), choose_part_rows(1_000_000, 8)
    (64, 320, 4096)
    """
    share = -(-num_rows // (num_workers * PARTS_A_WORKER))
    return min(MOST_ROWS, max(GRAIN, -(-share // GRAIN) * GRAIN))


def make_parts(files: list[CutFile], part_rows: int, limit: int | None = None) -> list[FilePart]:
    """Make parts of at least `part_rows` rows, except the last of each file; `limit` rows in all."""
    parts: list[FilePart] = []
    index = 0
    for cut in files:
        starts = [mark for number, mark in enumerate(cut.marks) if number == 0 or mark.row % part_rows == 0]
        if cut.form == "parquet":
            starts = _spaced(cut.marks, part_rows)
        ends = [mark.row for mark in starts[1:]] + [cut.num_rows]
        for mark, end in zip(starts, ends, strict=True):
            num_rows = end - mark.row if limit is None else min(end - mark.row, limit - index)
            if num_rows > 0:
                place = (mark.offset, mark.line, cut.header if mark.row else (), mark.group)
                parts.append(FilePart(len(parts), cut.file, cut.form, index, num_rows, *place))
                index += num_rows
    return parts


def _spaced(marks: tuple[_Mark, ...], part_rows: int) -> list[_Mark]:
    """Return marks that are at least `part_rows` rows apart."""
    spaced = list(marks[:1])
    for mark in marks[1:]:
        if mark.row - spaced[-1].row >= part_rows:
            spaced.append(mark)
    return spaced
