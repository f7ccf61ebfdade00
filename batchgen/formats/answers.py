"""Read results back from a file that a run has written, in any format but plain text, which has only the answers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from heapq import merge
from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.formats.arrow_types import COUNTS
from batchgen.formats.compression import damage, unpack
from batchgen.formats.delimited import plain_cell, plain_tsv_cell
from batchgen.formats.fields import LOGPROBS, PARSED, SUM
from batchgen.formats.openai_answers import results_of_answer
from batchgen.formats.scored_answers import is_scored, scored_result
from batchgen.records import Logprobs, Result

Answers = Iterator[Result]
JSON_COLUMNS = {"input_ids", "output_ids", "metadata", "messages", "tool_calls", "parsed"}
NEEDED = ("text", "finish_reason")  # a record without these is not a result
ROWS_AT_ONCE = 1024
OWN = {field.name: None if field.default is MISSING else field.default for field in fields(Result)}
# Values of Result fields that a file may omit.
EMPTY: dict[str, Any] = OWN | {"sample_index": 0, "prompt": "", "metadata": {}, "model": "", "num_prompt_tokens": 0}
EMPTY |= {"num_output_tokens": 0}


def read_answers(file: Path, form: str, failures: Path | None = None) -> Answers:
    """Every result of a file in the given format, in order; for an OpenAI Batch, merged with its `failures` file.

    Raises `InputError` for a file that is not an output of batchgen, or that is plain text.
    """
    read = READERS_BACK.get(form)
    if read is None:
        what = "has only the answers, not their rows" if form == "text" else f"cannot be read back from {form}"
        raise InputError(f"{file} {what}: give JSON Lines, CSV, TSV, Parquet, SQLite or a store")
    if failures and failures.is_file():
        return merge(read(file), read(failures), key=lambda result: (result.index, result.sample_index))
    return read(file)


def _read_jsonl(file: Path) -> Answers:
    with _open(file) as stream:
        for number, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                raise _no_result(file, number + 1) from None
            if isinstance(value, dict) and "custom_id" in value:
                yield from results_of_answer(value, number)
            else:
                yield _result(value, number, file, number + 1)


def _read_csv(file: Path) -> Answers:
    with _open(file) as stream:
        csv.field_size_limit(2**31 - 1)
        lines = (line.decode("utf-8", "replace") for line in stream)
        yield from _of_records(file, csv.reader(lines, strict=True), plain_cell)


def _read_tsv(file: Path) -> Answers:
    with _open(file) as stream:
        lines = (line.decode("utf-8", "replace").removesuffix("\n").split("\t") for line in stream)
        yield from _of_records(file, lines, plain_tsv_cell)


def _of_records(file: Path, records: Iterator[list[str]], plain: Callable[[str], str]) -> Answers:
    try:
        header = next(records, [])
        for number, cells in enumerate(records):
            values = {name: _of_cell(name, plain(cell)) for name, cell in zip(header, cells, strict=True)}
            yield _result(values if is_scored(values) else _in_fields(values), number, file, number + 2)
    except (csv.Error, ValueError) as error:
        raise InputError(f"{file} is not an output of batchgen, or is damaged: {error}") from None


def _of_cell(name: str, cell: str) -> Any:
    if name == "text" or name == "prompt":
        return cell
    if not cell:
        return None
    if name in COUNTS:
        return int(cell)
    if name == SUM:
        return float(cell)
    return json.loads(cell) if name in JSON_COLUMNS else cell


def _read_parquet(file: Path) -> Answers:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"{file}: Parquet needs another package: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(file) as opened:
            number = 0
            for batch in opened.iter_batches(ROWS_AT_ONCE, use_threads=False):
                for row in batch.to_pylist():
                    values = {name: _of_value(name, value) for name, value in row.items()}
                    yield _result(values if is_scored(values) else _in_fields(values), number, file, number + 1)
                    number += 1
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not an output of batchgen, or is damaged: {error}") from None


def _of_value(name: str, value: Any) -> Any:
    return json.loads(value) if name in JSON_COLUMNS and isinstance(value, str) else value


def _in_fields(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a table's row; unknown columns are metadata, together with the contents of column `metadata`."""
    own = {name: value for name, value in columns.items() if name in OWN and name != "metadata"}
    rest = {name.removeprefix("metadata."): value for name, value in columns.items() if name not in OWN}
    source = rest.pop("batchgen.source", None)
    if source is not None:  # the Result's own field: the input had a column `source`
        rest["source"], own["source"] = own.get("source"), source
    more = columns.get("metadata")
    return {**own, "metadata": rest | (more if isinstance(more, dict) else {})}


def _result(values: Any, number: int, file: Path, line: int) -> Result:
    if isinstance(values, dict) and is_scored(values):
        try:
            return scored_result(values, number, _logprobs)
        except (KeyError, TypeError, ValueError):
            raise _no_result(file, line) from None
    if not isinstance(values, dict) or any(name not in values for name in NEEDED):
        raise _no_result(file, line)
    row = EMPTY.copy()
    row["index"] = number
    for name, value in values.items():
        if value is not None and name in OWN:
            row[name] = value
    row["input_ids"], row["output_ids"] = tuple(row["input_ids"] or ()), tuple(row["output_ids"] or ())
    if row[LOGPROBS] is not None:
        row[LOGPROBS] = _logprobs(row[LOGPROBS])
    row["is_json"] = PARSED in values
    return Result(**row)


def _logprobs(values: Mapping[str, Any]) -> Logprobs:
    top = tuple(
        tuple((pair["token_id"], pair["logprob"]) if isinstance(pair, dict) else tuple(pair) for pair in pairs)
        for pairs in values["top"]
    )
    return Logprobs(tuple(values["token_ids"]), tuple(values["tokens"]), tuple(values["token_logprobs"]), top)


def _no_result(file: Path, line: int) -> InputError:
    return InputError(f"{file}:{line} is not a batchgen result: give the output of a run")


@contextmanager
def _open(file: Path) -> Iterator[Iterable[bytes]]:
    try:
        with file.open("rb") as stream:
            yield unpack(stream, str(file))
    except damage(OSError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


READERS_BACK: dict[str, Callable[[Path], Answers]] = {
    "jsonl": _read_jsonl,
    "openai-batch": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}
