"""Parts of input files, which workers read without each other: each knows its place in the run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

from batchgen.formats.compression import unpack
from batchgen.formats.content import Content
from batchgen.formats.reading import (
    ReadOptions,
    read_content,
    read_parquet_groups,
    to_requests,
    warn_of_option_columns,
)
from batchgen.formats.rows import Row
from batchgen.formats.seen_ids import Occurrences
from batchgen.formats.sniff import WHOLE
from batchgen.formats.templates import Template
from batchgen.records import Request, RowId, SamplingParams
from batchgen.runs.ray.inputs import InputFile

WITHOUT_IDS = {"text", WHOLE}
Header = tuple[tuple[int, bytes], ...]  # numbered lines


@dataclass(frozen=True, slots=True)
class FilePart:
    """Consecutive rows of one file. `offset` bytes and `first_line` say where the first begins, in Parquet its `group`.

    `header` are a table's first lines, which its rows need. `occurrences` says how often the id of each row came before
    in the run; empty where none did.
    """

    number: int
    file: InputFile
    form: str
    first_index: int
    num_rows: int
    offset: int = 0
    first_line: int = 1
    header: Header = ()
    group: int = 0
    occurrences: tuple[int, ...] = ()


def read_part(
    part: FilePart,
    sampling: SamplingParams,
    options: ReadOptions,
    start: int = 0,
    stop: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Request]:
    """The part's requests from its row `start` to before its row `stop`, with their indices over all inputs."""
    with part.file.open() as stream:
        rows = warn_of_option_columns(_read(part, stream, options), options, say)
        requests = to_requests(rows, sampling, part.first_index, part.occurrences)
        yield from islice(requests, start, part.num_rows if stop is None else stop)


def number_ids(parts: Iterable[FilePart], options: ReadOptions) -> Iterator[FilePart]:
    """All parts of a run, in order, each with what its workers cannot know: how often its ids came before."""
    counts = Occurrences()
    for part in parts:
        ids = _ids(part, options)
        found = tuple(counts.next(index, row_id) for index, row_id in enumerate(ids, part.first_index))
        yield replace(part, occurrences=found if any(found) else ())


def _ids(part: FilePart, options: ReadOptions) -> Iterator[RowId | None]:
    if part.form in WITHOUT_IDS:
        yield from repeat(None, part.num_rows)
        return
    template = options.template and _Columns(options.template.source, options.template.name)
    with part.file.open() as stream:
        for row in islice(_read(part, stream, replace(options, template=template)), part.num_rows):
            yield row.id


class _Columns(Template):
    """Asks for a template's columns, and makes no text of them."""

    def render(self, columns: Mapping[str, Any]) -> str:
        return ""


def _read(part: FilePart, stream: io.BufferedReader, options: ReadOptions) -> Iterator[Row]:
    if part.form == "parquet":
        unpacked = unpack(stream, part.file.name, part.file.packing)
        return read_parquet_groups(Content(part.file.name, unpacked), options, part.group, part.first_line - 1)
    if part.offset:
        stream.seek(part.offset)
        content = Content(part.file.name, stream, first_line=part.first_line)
        content.lines = chain(part.header, content.lines)
    else:
        content = Content(part.file.name, unpack(stream, part.file.name, part.file.packing))
    return read_content(content, part.form, options)
