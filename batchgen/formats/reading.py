"""Read Requests from text, JSON, CSV, TSV, Parquet or OpenAI Batch: from a file, a pipe or standard input.

Reading is streaming. A bad row becomes a Request with an `error` that names its file and line; other rows continue.
Knows nothing about tokens or models.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice

from batchgen.errors import InputError
from batchgen.formats.compression import unpack
from batchgen.formats.content import UTF8_BOM, Content
from batchgen.formats.delimited import read_csv, read_tsv
from batchgen.formats.json_document import read_json
from batchgen.formats.jsonl import read_jsonl
from batchgen.formats.openai_batch import read_openai_batch
from batchgen.formats.option_columns import warn_of_option_columns
from batchgen.formats.parquet import count_parquet, read_parquet, read_parquet_groups
from batchgen.formats.plain import read_text, read_whole
from batchgen.formats.rows import (
    ReadOptions,
    Row,
    check_read_options,
    check_template,
    read_delimiter,
    row_of_object,
    row_of_text,
    to_requests,
)
from batchgen.formats.sniff import WHOLE, choose_format
from batchgen.formats.sources import FORMATS_BY_SUFFIX, Source, find_sources, open_source
from batchgen.records import Request, SamplingParams

__all__ = [
    "FORMATS_BY_SUFFIX", "READERS", "UTF8_BOM", "ReadOptions", "Row", "Source", "check_beginnings",
    "check_read_options", "choose_format", "count_rows", "find_sources", "read_content", "read_delimiter",
    "read_parquet_groups", "read_requests", "row_of_object", "to_requests", "warn_of_option_columns",
]  # fmt: skip

Reader = Callable[[Content, ReadOptions], Iterator[Row]]
READERS: dict[str, Reader] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "openai-batch": read_openai_batch,
}
MOST_CHECKED = 64  # files whose beginning is checked before a run starts


def read_requests(
    sources: Iterable[Source],
    sampling: SamplingParams | None = None,
    options: ReadOptions | None = None,
    *,
    on_blank: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Request]:
    """Every row of every source as a Request; indices continue across sources.

    Blank lines are skipped and reported to `on_blank`. Guesses about a source, empty sources, and columns that look
    like options are reported to `say`.
    """
    options = options or ReadOptions()
    rows = (row for source in sources for row in _read(source, options, on_blank, say))
    return to_requests(warn_of_option_columns(rows, options, say), sampling or SamplingParams())


def _read(
    source: Source, options: ReadOptions, on_blank: Callable[[], None], say: Callable[[str], None]
) -> Iterator[Row]:
    if source.texts:
        check_template(source.name, options)
        yield from (row_of_text(text, None, options) for text in source.texts)
        return
    is_empty = True
    with open_source(source) as stream:
        content = Content(source.name, unpack(stream, source.name, source.packing), on_blank, say=say)
        for row in read_content(content, choose_format(content, source.form, options), options):
            is_empty = False
            yield row
    if is_empty:
        say(f"{source.name} is empty: it has no prompts")


def read_content(content: Content, form: str, options: ReadOptions) -> Iterator[Row]:
    """The rows of an open source in the format `form`."""
    return read_whole(content, options) if form == WHOLE else READERS[form](content, options)


def check_beginnings(sources: Iterable[Source], options: ReadOptions) -> None:
    """Read the first row of each file, so that bad input is found before a model is loaded.

    Raises `InputError` for a file that cannot contain prompts: binary, or without the required columns.
    """
    for source in islice(sources, MOST_CHECKED):
        with suppress(OSError):  # reported by the reader
            if source.path is not None and stat.S_ISREG(source.path.stat().st_mode):
                next(_read(source, options, lambda: None, lambda line: None), None)


def count_rows(sources: Iterable[Source], limit: int | None = None, options: ReadOptions | None = None) -> int | None:
    """The number of rows, for a progress bar; None if counting is slow, or a source cannot be read twice or at all."""
    total = 0
    for source in sources:
        try:
            rows = _count(source, options or ReadOptions(), limit)
        except (OSError, InputError):  # reported by the reader, with its name
            return None
        if rows is None:
            return None
        total += rows
        if limit is not None and total >= limit:
            return limit
    return total


def _count(source: Source, options: ReadOptions, limit: int | None) -> int | None:
    if source.texts:
        return len(source.texts)
    if options.whole_files:
        return 1
    if source.path is None or source.packing or not stat.S_ISREG(source.path.stat().st_mode):
        return None
    with open_source(source) as stream:
        if unpack(stream, source.name) is not stream:
            return None
        content = Content(source.name, stream)
        form = choose_format(content, source.form, options)
        if form == "parquet":
            return count_parquet(content)
        if form == "json":
            return None
        rows = READERS[form](content, options) if form in ("csv", "tsv") else content.rows()
        return sum(1 for _ in islice(rows, limit))
