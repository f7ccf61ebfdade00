"""Prompt files to Requests: text, JSON Lines, CSV, TSV, Parquet, OpenAI Batch; a file, a pipe, standard input.

Reading is streaming. A bad row becomes a Request with an `error` that names its file and line; the rest go on.
Knows nothing of tokens or models.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from batchgen.errors import InputError
from batchgen.formats.compression import unpack
from batchgen.formats.content import UTF8_BOM, Content
from batchgen.formats.delimited import read_csv, read_tsv
from batchgen.formats.json_values import parse_json
from batchgen.formats.jsonl import read_jsonl
from batchgen.formats.openai_batch import is_openai_batch, read_openai_batch
from batchgen.formats.parquet import count_parquet, read_parquet, read_parquet_groups
from batchgen.formats.plain import read_text
from batchgen.formats.rows import ReadOptions, Row, row_of_object, row_of_text, to_requests
from batchgen.formats.sources import FORMATS_BY_SUFFIX, Source, find_sources, open_source
from batchgen.records import Request, SamplingParams

__all__ = [
    "FORMATS_BY_SUFFIX", "READERS", "UTF8_BOM", "ReadOptions", "Row", "Source", "choose_format", "count_rows",
    "find_sources", "read_parquet_groups", "read_requests", "row_of_object", "to_requests",
]  # fmt: skip

Reader = Callable[[Content, ReadOptions], Iterator[Row]]
READERS: dict[str, Reader] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "openai-batch": read_openai_batch,
}
PARQUET_MAGIC = b"PAR1"


def read_requests(
    sources: Iterable[Source],
    sampling: SamplingParams | None = None,
    options: ReadOptions | None = None,
    *,
    on_blank: Callable[[], None] = lambda: None,
) -> Iterator[Request]:
    """Every row of every source as a Request; indices run on over all of them.

    Blank lines are skipped and told to `on_blank`.
    """
    options = options or ReadOptions()
    rows = (row for source in sources for row in _read(source, options, on_blank))
    return to_requests(rows, sampling or SamplingParams())


def _read(source: Source, options: ReadOptions, on_blank: Callable[[], None]) -> Iterator[Row]:
    if source.texts:
        yield from (row_of_text(text, None, options) for text in source.texts)
        return
    with open_source(source) as stream:
        content = Content(source.name, unpack(stream, source.name, source.packing), on_blank)
        yield from READERS[choose_format(content, source.form, options)](content, options)


def choose_format(content: Content, form: str | None, options: ReadOptions) -> str:
    """The format that was said, else the one its name promises, else what its beginning looks like."""
    if options.input_format is not None:
        return options.input_format
    if form not in (None, "jsonl"):
        return str(form)
    if form is None and content.starts_with(PARQUET_MAGIC):
        return "parquet"
    try:
        value = parse_json((content.peek_row() or b"").decode("utf-8"))
    except ValueError:
        value = None
    return "openai-batch" if is_openai_batch(value) else form or _sniff(value, options)


def _sniff(value: object, options: ReadOptions) -> str:
    """The format of a stream without a suffix: JSON Lines if its first line is an object with a prompt."""
    if options.field is not None or options.id_field is not None:
        return "jsonl"
    has_prompt = isinstance(value, dict) and (options.template or options.find_field(value) is not None)
    return "jsonl" if has_prompt else "text"


def count_rows(sources: Iterable[Source], limit: int | None = None, options: ReadOptions | None = None) -> int | None:
    """Rows to come, for a progress bar; None where that costs much, can be read only once, or not at all."""
    total = 0
    for source in sources:
        try:
            rows = _count(source, options or ReadOptions(), limit)
        except (OSError, InputError):  # told by the reader, with its name
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
    if source.path is None or source.packing or not stat.S_ISREG(source.path.stat().st_mode):
        return None
    with open_source(source) as stream:
        if unpack(stream, source.name) is not stream:
            return None
        content = Content(source.name, stream)
        form = choose_format(content, source.form, options)
        if form == "parquet":
            return count_parquet(content)
        rows = READERS[form](content, options) if form in ("csv", "tsv") else content.rows()
        return sum(1 for _ in islice(rows, limit))
