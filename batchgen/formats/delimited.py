"""CSV and TSV: a header, then one record per row; written so that spreadsheets see no formulas.

CSV is parsed strictly by the csv module. In TSV, each line is a record and quotes are plain text. A broken CSV record
fails alone: reading continues on the line after its first one, so that an unclosed quote does not swallow the rows
below it.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from batchgen.errors import InputError
from batchgen.formats.column_checks import check_columns
from batchgen.formats.columns import cell_text, choose_columns
from batchgen.formats.content import Content, Line
from batchgen.formats.fields import WriteOptions, to_bytes
from batchgen.formats.rows import ReadOptions, Row, row_of_cells, weigh_cells
from batchgen.records import LONGEST_ROW, Result

MOST_LINES = 100_000  # per record
MOST_READ_AGAIN = 2**26  # bytes: limits files built to make the reader go back again and again
# The csv module's error messages, and ours.
PROBLEMS = {
    "unexpected end of data": "a quoted cell is never closed",
    "expected after '\"'": 'text after a closing quote (a quote inside a quoted cell is written "")',
    "new-line character": "a carriage return outside quotes",
    "field larger": f"a cell longer than {LONGEST_ROW // 2**20} MiB",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One record, the number of its first line, its cells, and what is wrong with it, if anything."""

    number: int
    cells: list[str]
    problem: str | None = None


DELIMITERS = {"csv": ",", "tsv": "\t"}
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_csv(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read rows separated by commas or `--delimiter`, with cells quoted as in RFC 4180."""
    return _read(content, options, "csv")


def read_tsv(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read rows separated by tabs or `--delimiter`; each line is a record, and quotes are plain text."""
    return _read(content, options, "tsv")


def _read(content: Content, options: ReadOptions, form: str) -> Iterator[Row]:
    for header, record in data_records(content, options, form):
        yield _row(record, header, content.at(record.number), options)


def data_records(content: Content, options: ReadOptions, form: str) -> Iterator[tuple[list[str], Record]]:
    """The records below the header, each with the header. Reading from any of them on gives the same records."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))  # the module has one limit for all readers
    delimiter = options.delimiter or DELIMITERS[form]
    header: list[str] | None = None
    records = _lines_as_records(content, delimiter) if form == "tsv" else _records(_Lines(content), delimiter)
    for record in records:
        if _is_blank(record, header):
            content.on_blank()
        elif header is None:
            header = _header(record, content, options, delimiter)
        else:
            yield header, record


def _lines_as_records(content: Content, delimiter: str) -> Iterator[Record]:
    for number, line in content.lines:
        if line is None:
            yield Record(number, [], content.TOO_LONG)
            continue
        problem = None
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            text, problem = line.decode("utf-8", "replace"), f"not UTF-8 at byte {error.start} of the line"
        cells = split_tsv(text, delimiter)
        yield Record(number, [] if cells == [""] else cells, problem)


def split_tsv(line: str, delimiter: str = "\t") -> list[str]:
    r"""Split a line into cells.
    >>> split_tsv('a\t"b\n')
    ['a', '"b']
    """
    return line.removesuffix("\n").removesuffix("\r").split(delimiter)


def _records(lines: _Lines, delimiter: str) -> Iterator[Record]:
    parser = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(lines.first, [], _explain(str(error)) + lines.go_back())
        else:
            yield Record(lines.first, cells, lines.problem)


def _explain(message: str) -> str:
    return next((problem for words, problem in PROBLEMS.items() if words in message), message)


def _is_blank(record: Record, header: list[str] | None) -> bool:
    """Whether a record is an empty line, or a line of spaces that cannot be a cell of a one-column table."""
    if record.problem or len(record.cells) > 1:
        return False
    return not record.cells or (not record.cells[0].strip() and (header is None or len(header) > 1))


def _header(record: Record, content: Content, options: ReadOptions, delimiter: str) -> list[str]:
    if record.problem:
        raise InputError(f"{content.at(record.number)}: the header cannot be read: {record.problem}")
    columns = name_columns(record.cells)
    check_columns(columns, content.name, options, _other_delimiter(record.cells, delimiter, options))
    return columns


def name_columns(cells: list[str]) -> list[str]:
    """A header's column names; a column without a name is named after its position.
    >>> name_columns(["", "prompt", " "])
    ['column_1', 'prompt', 'column_3']
    """
    taken = set(cells)
    return [cell if cell.strip() else _free(f"column_{place}", taken) for place, cell in enumerate(cells, 1)]


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _other_delimiter(cells: list[str], delimiter: str, options: ReadOptions) -> str:
    """The suggested fix if another delimiter would split the header into the missing columns; otherwise empty."""
    line = delimiter.join(cells)
    for other, name in NAMES.items():
        columns = [column.strip().strip('"') for column in line.split(other)]
        if other != delimiter and len(columns) > 1 and options.finds_prompt(columns):
            typed = "'\\t'" if other == "\t" else f"'{other}'"
            return f"; it looks separated by {name}: add --delimiter {typed}"
    return ""


def _row(record: Record, header: list[str], source: str, options: ReadOptions) -> Row:
    """Turn a record into a Row. If its number of cells differs from the header's, its id is unknown."""
    if len(record.cells) != len(header):
        problem = f"{len(record.cells)} cells where the header has {len(header)} columns"
        return Row(error=record.problem or problem, source=source)
    columns = dict(zip(header, record.cells, strict=True))
    return row_of_cells(columns, source, options, problem=record.problem, num_bytes=weigh_cells(record.cells))


class _Lines:
    """Decoded lines for the parser. Keeps those of the current record, to read them again if it is broken."""

    def __init__(self, content: Content) -> None:
        self.first = 0
        self.problem: str | None = None
        self._new = content.lines
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []
        self._size = 0
        self._left = MOST_READ_AGAIN

    def begin(self) -> None:
        """Start a new record."""
        self._taken, self._size, self.problem = [], 0, None

    def go_back(self) -> str:
        """Read the record's lines again except its first; return a note for the error if they are skipped instead."""
        again = self._taken[1:]
        self._left -= self._size
        if again and self._left < 0:
            return f"; skipped up to line {again[-1][0]}"
        self._again.extendleft(reversed(again))
        return ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = self._again.popleft() if self._again else next(self._new)
        if not self._taken:
            self.first = number
        self._taken.append((number, line))
        self._size += len(line or b"")
        if line is None or self._size > LONGEST_ROW or len(self._taken) > MOST_LINES:
            raise csv.Error(f"longer than {LONGEST_ROW // 2**20} MiB or {MOST_LINES:,} lines: is a quote never closed?")
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.problem = self.problem or f"not UTF-8 at byte {error.start} of line {number}"
            return line.decode("utf-8", "replace")


# What spreadsheets interpret as a formula, according to OWASP: these signs, also full-width, also after characters that
# a spreadsheet may drop; and a leading tab or line break. A plain number is not a formula.
DROPPED = "\x00-\x20\x7f-\xa0\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff"
SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\Z"
FORMULA = re.compile(f"(?!{NUMBER}| +[{SIGNS}])(?:[{DROPPED}]*[{SIGNS}]|[\t\r\n])", re.ASCII | re.IGNORECASE)
TSV_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
TSV_PLAIN = {"t": "\t", "n": "\n", "r": "\r"}
TSV_ESCAPED = re.compile(r"\\([tnr])")


def write_csv(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    r"""Write a header, then one record per row: quoted as in RFC 4180, but ending in \n."""
    _write(results, stream, options, _csv_line)


def write_tsv(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    r"""Write the same with tabs and without quotes: a tab or a line break in a cell is written \t, \n or \r."""
    _write(results, stream, options, _tsv_line)


def _write(
    results: Iterable[Result], stream: BinaryIO, options: WriteOptions, make_line: Callable[[list[str]], str]
) -> None:
    columns, results = choose_columns(results, ids=options.ids, spread=options.columns)
    line = partial(_line, options=options, make_line=make_line)
    stream.write(line(columns.names))
    stream.flush()
    for result in results:
        stream.write(line([cell_text(value) for value in columns.values(result)]))
        stream.flush()


def _line(cells: list[str], options: WriteOptions, make_line: Callable[[list[str]], str]) -> bytes:
    return to_bytes(make_line([options.escape(cell if options.csv_raw else neutral(cell)) for cell in cells]) + "\n")


def _csv_line(cells: list[str]) -> str:
    buffer = io.StringIO(newline="")
    # This terminator makes the csv module quote cells with either kind of newline.
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n")


def _tsv_line(cells: list[str]) -> str:
    return "\t".join(map(tsv_text, cells))


def tsv_text(cell: str) -> str:
    """A cell as written in TSV."""
    return cell.translate(TSV_ESCAPES)


def neutral(cell: str) -> str:
    """Prefix a cell that a spreadsheet would take for a formula with an apostrophe, which makes it text.
    >>> [neutral(cell) for cell in ("=1+1", "-1.5", "- one", "a=b")]
    ["'=1+1", '-1.5', "'- one", 'a=b']
    """
    return f"'{cell}" if FORMULA.match(cell) else cell


def plain_cell(cell: str) -> str:
    """Undo `neutral`.
    >>> [plain_cell(cell) for cell in ("'=1+1", "'tis", "-1.5")]
    ['=1+1', "'tis", '-1.5']
    """
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell, 1) else cell


def plain_tsv_cell(cell: str) -> str:
    r"""Undo `neutral` and `tsv_text`. A literal \t, \n or \r in the original cell cannot be told from an escape."""
    return plain_cell(TSV_ESCAPED.sub(lambda match: TSV_PLAIN[match[1]], cell))
