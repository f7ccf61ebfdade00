"""What a command writes to standard output, and checks of the output format."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

from batchgen.cli.options import Format
from batchgen.errors import OutputError, UsageError
from batchgen.formats.compression import split_suffixes
from batchgen.formats.reading import Source
from batchgen.formats.writing import WRITERS, WriteOptions, Writer
from batchgen.records import Result
from batchgen.render.screen import OutputConsole
from batchgen.render.table import ResultTable
from batchgen.runs.checks import is_read_from
from batchgen.runs.target import form_of_output


def choose_format(asked: Format, output: Path | None, *, ids: bool = False, csv_raw: bool = False) -> Format:
    """Return the requested format, or the one of the file's suffix; without a file, a table or JSON Lines.

    Without a file, `auto` is a table on a terminal and JSON Lines in a pipe. Raises `UsageError` for options that the
    format does not support.
    """
    form = asked if asked is not Format.auto else _natural_format(output)
    if ids and form in (Format.text, Format.openai_batch):
        raise UsageError(f"--ids does not work with --format {form.value}: use jsonl or table")
    if csv_raw and form not in (Format.csv, Format.tsv):
        raise UsageError("--csv-raw only works with --format csv and tsv")
    if form is Format.sqlite and output is None:
        raise UsageError("--format sqlite needs a file: name it with -o")
    if form is Format.parquet and output is None and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("Parquet cannot be shown on a terminal: name a file with -o")
    if output is not None and form in (Format.sqlite, Format.parquet) and split_suffixes(output)[1]:
        raise UsageError(f"-o {output}: {form.value} cannot be compressed: remove {output.suffix}")
    return form


def check_columns_flag(columns: bool, form: Format, *, on_ray: bool) -> None:
    """Reject `--columns` for formats without columns, and on Ray."""
    if columns and on_ray:
        raise UsageError("--columns is not supported with --ray: remove one")
    if columns and form not in (Format.csv, Format.tsv, Format.parquet, Format.sqlite):
        raise UsageError(
            f"--columns only works with CSV, TSV, Parquet and SQLite, not with {form.value}: try -o answers.csv"
        )


def _natural_format(output: Path | None) -> Format:
    if output is not None:
        return Format(form_of_output(output))
    if sys.stdout is None:
        raise OutputError("standard output is closed: name a file with -o")
    return Format.table if sys.stdout.isatty() else Format.jsonl


def check_stdout(sources: Sequence[Source]) -> None:
    """Refuse a standard output that is also an input: what is appended would be read again, endlessly."""
    with suppress(AttributeError, ValueError):
        if any(is_read_from(source, sys.stdout.fileno()) for source in sources):
            raise OutputError("standard output is also an input: write to another file")


def write_table(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """Write the table shown on a terminal, as rows finish."""
    with text_of(stream) as file:
        console = OutputConsole(file=file, highlight=False)
        ResultTable(console, options.pad_token_id, all_ids=options.ids).write(results)


OUR_WRITERS: dict[str, Writer] = WRITERS | {Format.table.value: write_table}


@contextmanager
def text_of(stream: BinaryIO) -> Iterator[TextIO]:
    """Wrap a binary stream as a text stream; the binary stream stays open."""
    text = TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)
    try:
        yield text
    finally:
        text.detach()


def is_abandoned(stream: TextIO) -> bool:
    """Whether the reader of a pipe has closed it; otherwise only the next write would reveal that."""
    if not hasattr(select, "poll"):
        return False
    with suppress(OSError, ValueError):  # without a file descriptor there is no reader
        poller = select.poll()
        poller.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poller.poll(0))
    return False
