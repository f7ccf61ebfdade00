"""Plain text: one prompt a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from batchgen.formats.content import Content
from batchgen.formats.fields import WriteOptions, to_bytes
from batchgen.formats.rows import ReadOptions, Row, row_of_text
from batchgen.records import Result


def read_text(content: Content, options: ReadOptions) -> Iterator[Row]:
    """One prompt a line. A line that is not UTF-8 is a bad row."""
    for number, line in content.rows():
        source = content.at(number)
        if line is None:
            yield Row(error=content.TOO_LONG, source=source)
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 at byte {error.start} of the line"
            yield Row(line.decode("utf-8", "replace"), error=problem, source=source)
        else:
            yield row_of_text(text, source, options)


def write_text(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    r"""The generated text alone, one line a row: newlines inside it are written \n, a failed row is an empty line."""
    for result in results:
        line = result.text.replace("\r", "\\r").replace("\n", "\\n")
        stream.write(to_bytes(options.escape(line) + "\n"))
        stream.flush()
