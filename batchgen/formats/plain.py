"""Plain text: one prompt per line, or per file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from batchgen.formats.binary import binary_kind
from batchgen.formats.content import UTF8_BOM, Content
from batchgen.formats.fields import WriteOptions, to_bytes
from batchgen.formats.rows import ReadOptions, Row, check_template, row_of_text
from batchgen.records import LONGEST_ROW, Result

RETURNS = r"has carriage returns inside, which do not end prompts (to split lines at them: tr '\r' '\n')"
FIRST_BYTES = 8192  # that are checked to see whether a file is text


def read_text(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read one prompt per line. A line that is not UTF-8 is a bad row."""
    check_template(content.name, options)
    knows_returns = False
    for number, line in content.rows():
        source = content.at(number)
        if line and b"\r" in line and not knows_returns:
            knows_returns = True
            content.say(f"{source} {RETURNS}")
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


def read_whole(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read the whole file as one prompt, without the line break that editors add at the end."""
    check_template(content.name, options)
    source = content.at(content.first_line)
    data = content.read(LONGEST_ROW + 1).removeprefix(UTF8_BOM)
    if len(data) > LONGEST_ROW:
        yield Row(error=f"the file is longer than {LONGEST_ROW // 2**20} MiB", source=source)
        return
    if kind := binary_kind(data[:FIRST_BYTES]):
        yield Row(error=f"the file is {kind}, not text", source=source)
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Row(data.decode("utf-8", "replace"), error=f"not UTF-8 at byte {error.start} of the file", source=source)
    else:
        yield row_of_text(text.removesuffix("\n").removesuffix("\r"), source, options)


def write_text(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    r"""Write only the generated text, one line per row: newlines are written as \n, a failed row is an empty line."""
    for result in results:
        line = result.text.replace("\r", "\\r").replace("\n", "\\n")
        stream.write(to_bytes(options.escape(line) + "\n"))
        stream.flush()
