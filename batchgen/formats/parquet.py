"""Parquet with pyarrow: reads a few hundred rows at a time, whatever the file's size; writes a row group at a time."""

from __future__ import annotations

import io
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from batchgen.errors import InputError, OutputError
from batchgen.formats.arrow_types import to_cell, type_of
from batchgen.formats.arrow_weights import NUMBER_BYTES, cut_by_weight, weigh_batch
from batchgen.formats.column_checks import check_columns
from batchgen.formats.columns import Columns, choose_columns
from batchgen.formats.compression import damage
from batchgen.formats.content import Content
from batchgen.formats.fields import WriteOptions, whole_characters
from batchgen.formats.parquet_facts import facts_to_write
from batchgen.formats.rows import ReadOptions, Row, row_of_cells
from batchgen.records import LONGEST_ROW, Result

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE, BYTES_AT_ONCE = 256, LONGEST_ROW
LARGE_GROUP, FEW_ROWS = 2**29, 16  # in a row group of more bytes, a few rows may be far larger than the rest
TOO_LONG = f"the row is longer than {LONGEST_ROW // 2**20} MiB"
BUFFER = 2**20
MOST_IN_MEMORY = 2**26


def read_parquet(content: Content, options: ReadOptions) -> Iterator[Row]:
    """Read one row per Parquet row; "lines" are rows, counted from 1. Values that JSON does not have become text."""
    return read_parquet_groups(content, options, 0, 0)


def read_parquet_groups(content: Content, options: ReadOptions, first_group: int, number: int) -> Iterator[Row]:
    """The rows of a row group and of all later ones; `number` is how many rows come before it."""
    pa = _pyarrow(content.name)
    try:
        with _seekable(content.stream) as stream:
            metadata = pa.parquet.read_metadata(stream)
            texts = _dictionary_columns(metadata)
            file = pa.parquet.ParquetFile(
                stream, metadata=metadata, pre_buffer=False, buffer_size=BUFFER, read_dictionary=texts
            )
            check_columns(file.schema_arrow.names, content.name, options)
            for group in range(first_group, file.num_row_groups):
                for columns, num_bytes in _rows_of_group(file, group, pa):
                    number += 1
                    yield _row(columns, content.at(number), options, num_bytes)
    except damage(pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise InputError(f"{content.name} is not Parquet, or is damaged after row {number}: {reason}") from None


def _dictionary_columns(metadata: Any) -> list[str]:
    """Columns of strings that the file stores as a dictionary: read that way, repeated strings are in memory once."""
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    columns = (group.column(place) for group in groups for place in range(metadata.num_columns))
    return sorted(
        {
            column.path_in_schema
            for column in columns
            if column.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in encoding for encoding in column.encodings)
        }
    )


def _rows_of_group(file: Any, group: int, pa: Any) -> Iterator[tuple[dict[str, Any] | ValueError, int]]:
    """The rows of a row group, each with its weight in bytes; decodes a bounded number of bytes at a time."""
    metadata = file.metadata.row_group(group)
    size = _size_of_group(metadata, file.metadata.schema)
    row_bytes = size // max(1, metadata.num_rows)
    if row_bytes > LONGEST_ROW:
        problem = ValueError(f"rows of {row_bytes // 2**20:,} MiB, more than the limit of {LONGEST_ROW // 2**20} MiB")
        yield from ((problem, 0) for _ in range(metadata.num_rows))
        return
    most_rows = ROWS_AT_ONCE if size <= LARGE_GROUP else FEW_ROWS
    at_once = max(1, min(most_rows, BYTES_AT_ONCE // max(1, row_bytes)))
    for batch in file.iter_batches(at_once, [group], use_threads=False):
        yield from _rows_of_batch(_without_nanoseconds(batch, pa), pa)


def _size_of_group(group: Any, schema: Any) -> int:
    """The approximate decoded bytes of a row group, except dictionary strings; encodings can shrink data a lot."""
    size = 0
    for place in range(group.num_columns):
        column = group.column(place)
        width = max(NUMBER_BYTES, schema.column(place).length)  # the length of fixed-size values
        size += max(column.total_uncompressed_size, column.num_values * width)
    return size


def _rows_of_batch(batch: pyarrow.RecordBatch, pa: Any) -> Iterator[tuple[dict[str, Any] | ValueError, int]]:
    weights = weigh_batch(batch, pa)
    for start, number in cut_by_weight(weights, BYTES_AT_ONCE):
        if weights[start] > LONGEST_ROW:  # then the slice is this row alone
            yield from ((ValueError(TOO_LONG), 0) for _ in range(number))
        else:
            yield from zip(_rows(batch.slice(start, number)), weights[start : start + number], strict=True)


def count_parquet(content: Content) -> int:
    """The number of rows from the file's metadata; no data is read."""
    return sum(row_groups(content))


def row_groups(content: Content) -> list[int]:
    """The number of rows of each row group, from the file's metadata."""
    pa = _pyarrow(content.name)
    try:
        with _seekable(content.stream) as stream:
            metadata = pa.parquet.ParquetFile(stream).metadata
            return [int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
    except pa.ArrowException as error:
        raise InputError(f"{content.name} is not Parquet: {error}") from None


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{name}: Parquet needs another package: pip install pyarrow") from None
    return pyarrow


@contextmanager
def _seekable(stream: io.BufferedReader) -> Iterator[BinaryIO]:
    """A stream that can seek, because Parquet's index is at the end; a pipe is first copied to a temporary file."""
    if type(stream) is io.BufferedReader and stream.seekable():
        yield stream
        return
    with tempfile.SpooledTemporaryFile(MOST_IN_MEMORY) as spool:
        shutil.copyfileobj(stream, spool)
        spool.seek(0)
        yield cast(BinaryIO, spool)


def _without_nanoseconds(batch: pyarrow.RecordBatch, pa: Any) -> pyarrow.RecordBatch:
    """Convert timestamps to microseconds, which is Python's resolution."""
    columns = [
        column.cast(pa.timestamp("us", column.type.tz), safe=False)
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns"
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | ValueError]:
    try:
        yield from batch.to_pylist()
    except ValueError:  # text that is not UTF-8, or a date that Python cannot represent: one row at a time
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield ValueError(f"a text is not UTF-8 at byte {error.start}")
            except ValueError as error:
                yield ValueError(f"a value that cannot be read: {error}")


def _row(columns: dict[str, Any] | ValueError, source: str, options: ReadOptions, num_bytes: int) -> Row:
    if isinstance(columns, ValueError):
        return Row(error=str(columns), source=source)
    plain = {name: _plain(value) for name, value in columns.items()}
    problem = None
    of_template = sorted(options.template.columns) if options.template else []
    for name in (options.find_field(plain), options.id_name, *of_template):
        if name and isinstance(raw := columns.get(name), bytes) and (place := _broken_at(raw)) is not None:
            plain[name] = raw.decode("utf-8", "replace")
            problem = f"the field {name} is not UTF-8 at byte {place}"
    return row_of_cells(plain, source, options, problem=problem, num_bytes=num_bytes)


def _broken_at(raw: bytes) -> int | None:
    """The position of the first byte that is not UTF-8, or None."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def _plain(value: Any) -> Any:
    """The value as JSON can express it: dates in ISO 8601, bytes as UTF-8, NaN as null, other types as Python's `str`.
    >>> _plain({"day": date(2026, 11, 23), "share": float("nan"), "raw": b"caf\\xc3\\xa9"})
    {'day': '2026-11-23', 'share': None, 'raw': 'café'}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


# The maximum size of a row group. The first one decides the types of the metadata columns.
GROUP_ROWS = 1024
GROUP_CHARACTERS = 2**24
EXACT = 2**53  # whole numbers up to this are exact in float64
MOST = 2**63 - 1


def write_parquet(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """Write results. A column has the common type of its values in the first row group, otherwise it is text (JSON if
    nested). Later values of another type go into the column `metadata`, as JSON.
    """
    pa = _pyarrow_for_output()
    columns, results = choose_columns(results, ids=options.ids, nested=True, spread=options.columns)
    groups = _groups(results)
    first = next(groups, [])
    kinds = {key: _kind([result.metadata.get(key) for result in first]) for key in columns.keys}
    schema = pa.schema(_fields(columns, kinds, pa))
    with pa.parquet.ParquetWriter(stream, schema) as writer:
        group = first
        while group:
            rows = [columns.values(result, lambda key, value: _fits(value, kinds[key])) for result in group]
            arrays = [
                pa.array([to_cell(row[place], field.type, pa) for row in rows], field.type)
                for place, field in enumerate(schema)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            stream.flush()
            group = next(groups, [])
        writer.add_key_value_metadata(facts_to_write(options.facts))


def _pyarrow_for_output() -> Any:
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise OutputError("Parquet needs another package: pip install pyarrow") from None
    return pyarrow


def _groups(results: Iterable[Result]) -> Iterator[list[Result]]:
    group: list[Result] = []
    size = 0
    for result in results:
        group.append(result)
        size += len(result.prompt) + len(result.text)
        if len(group) == GROUP_ROWS or size > GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _kind(values: list[Any]) -> str:
    """The type that fits all values except None; "any" if there is none."""
    given = [value for value in values if value is not None]
    kinds = ("bool", "int", "float", "str")
    return next((kind for kind in kinds if given and all(_fits(value, kind) for value in given)), "any")


def _fits(value: Any, kind: str) -> bool:
    if value is None or kind == "any":
        return True
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, int):
        return abs(value) <= {"int": MOST, "float": EXACT}.get(kind, -1)
    return type(value).__name__ == kind


def _fields(columns: Columns, kinds: dict[str, str], pa: Any) -> Iterator[tuple[str, Any]]:
    metadata = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    names = (whole_characters(name) for name in columns.names)
    for own in columns.own:
        yield next(names), type_of(own, pa)
    for key in columns.keys:
        yield next(names), metadata.get(kinds[key], pa.string())
    yield next(names), pa.string()
