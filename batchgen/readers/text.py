"""Plain text: one prompt a line."""

from __future__ import annotations

from collections.abc import Iterator

from batchgen.readers.content import Content
from batchgen.readers.rows import ReadOptions, Row, row_of_text


def read_text(content: Content, options: ReadOptions) -> Iterator[Row]:
    """One prompt a line. A line that is not UTF-8 is a bad row."""
    for number, line in content.rows():
        if line is None:
            yield content.too_long(number)
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield content.not_utf8(number, line, error)
        else:
            yield row_of_text(text, content.at(number), options)
