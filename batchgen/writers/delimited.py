"""CSV and TSV, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from functools import partial
from typing import BinaryIO

from batchgen.records import Result
from batchgen.writers.columns import cell_text, choose_columns
from batchgen.writers.fields import WriteOptions, to_bytes

# Text that a spreadsheet would run; a plain number is none.
FORMULA = re.compile(r"(?![+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\Z)[=+\-@\t\r]", re.IGNORECASE)


def write_csv(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    r"""A header, then a record a row: quoted as RFC 4180 has it, but with \n at its end."""
    _write(results, stream, options, ",")


def write_tsv(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """The same with tabs, quoted alike."""
    _write(results, stream, options, "\t")


def _write(results: Iterable[Result], stream: BinaryIO, options: WriteOptions, delimiter: str) -> None:
    columns, results = choose_columns(results, ids=options.ids)
    line = partial(_line, options=options, delimiter=delimiter)
    stream.write(line(columns.names))
    stream.flush()
    for result in results:
        stream.write(line([cell_text(value) for value in columns.values(result)]))
        stream.flush()


def _line(cells: list[str], options: WriteOptions, delimiter: str) -> bytes:
    buffer = io.StringIO(newline="")
    # Cells with a newline of either kind are quoted for the sake of this terminator.
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow([options.escape(cell if options.csv_raw else neutral(cell)) for cell in cells])
    return to_bytes(buffer.getvalue().removesuffix("\r\n") + "\n")


def neutral(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe before it makes it text.

    >>> [neutral(cell) for cell in ("=1+1", "-1.5", "- one", "a=b")]
    ["'=1+1", '-1.5', "'- one", 'a=b']
    """
    return f"'{cell}" if FORMULA.match(cell) else cell
