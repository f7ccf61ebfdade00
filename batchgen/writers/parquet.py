"""Parquet, by pyarrow: a row group at a time, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from batchgen.errors import OutputError
from batchgen.records import Result
from batchgen.writers.columns import Columns, cell_text, choose_columns
from batchgen.writers.fields import WriteOptions, to_bytes

# What a row group holds at most. The first one decides the types of the metadata columns.
GROUP_ROWS = 1024
GROUP_CHARACTERS = 2**24
COUNTS = {"index", "sample_index", "num_prompt_tokens", "num_output_tokens", "batch_index", "padded_length"}
TOKENS = {"input_ids", "output_ids"}
EXACT = 2**53  # whole numbers up to this are the same as float64
MOST = 2**63 - 1


def write_parquet(results: Iterable[Result], stream: BinaryIO, options: WriteOptions) -> None:
    """A column has its values' type if all of the first row group have the same one, else it is text (JSON where
    nested); later values of another type are in the column `metadata`, as JSON.
    """
    pa = _pyarrow()
    columns, results = choose_columns(results, ids=options.ids)
    groups = _groups(results)
    first = next(groups, [])
    kinds = {key: _kind([result.metadata.get(key) for result in first]) for key in columns.keys}
    schema = pa.schema(_fields(columns, kinds, pa))
    with pa.parquet.ParquetWriter(stream, schema) as writer:
        group = first
        while group:
            rows = [columns.values(result, lambda key, value: _fits(value, kinds[key])) for result in group]
            arrays = [
                pa.array([_cell(row[place], field.type, pa) for row in rows], field.type)
                for place, field in enumerate(schema)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            stream.flush()
            group = next(groups, [])


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise OutputError("Parquet needs another package: pip install 'batchgen[parquet]'") from None
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
    """The one type that holds all values, None aside."""
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
    names = (_encodable(name) for name in columns.names)
    for own in columns.own:
        yield next(names), pa.int64() if own in COUNTS else pa.list_(pa.int64()) if own in TOKENS else pa.string()
    for key in columns.keys:
        yield next(names), metadata.get(kinds[key], pa.string())
    yield next(names), pa.string()


def _cell(value: Any, kind: Any, pa: Any) -> Any:
    if value is None or kind != pa.string():
        return value
    return _encodable(cell_text(value))


def _encodable(text: str) -> str:
    return to_bytes(text).decode("utf-8")
