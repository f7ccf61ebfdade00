"""Parts of input files that workers read independently: each knows its place in the run."""

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
Header = tuple[tuple[int, bytes], ...]  # line numbers and lines


@dataclass(frozen=True, slots=True)
class FilePart:
    """Consecutive rows of one file.

    They begin at byte `offset` and line `first_line`, or in Parquet at row group `group`. `header` has a table's first
    lines, which its rows need. `occurrences` says for each row how often its id came before in the run; it is empty if
    none did.
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
    """Yield the part's requests from row `start` to before row `stop`, with their indices over all inputs."""
    with part.file.open() as stream:
        rows = warn_of_option_columns(_read(part, stream, options), options, say)
        requests = to_requests(rows, sampling, part.first_index, part.occurrences)
        yield from islice(requests, start, part.num_rows if stop is None else stop)


def number_ids(parts: Iterable[FilePart], options: ReadOptions) -> Iterator[FilePart]:
    """Yield all parts of a run in order, completed with what workers cannot know: how often each id came before."""
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
    """Looks up a template's columns without rendering text."""

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
