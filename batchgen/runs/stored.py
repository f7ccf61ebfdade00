"""The contents of a run store, as read by its own run and by others while it is written."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from batchgen.errors import OutputError
from batchgen.records import Result
from batchgen.runs.cells import hash_of, to_result
from batchgen.runs.database import COLUMNS, DAMAGED, in_one_line, open_for_reading

PAGE_ROWS = 500  # rows per query: between queries, a reader does not hold the log of a running run
FAILED = "finish_reason = 'error'"
REASONS = f"""
SELECT source, error, min(row_index), count(DISTINCT row_index) FROM results WHERE {FAILED}
GROUP BY kind(source, error) ORDER BY 3 LIMIT ?
"""
COMPLETE = f"""
inputs WHERE num_samples <= (SELECT count(*) FROM results WHERE results.row_index = inputs.row_index)
OR EXISTS (SELECT 1 FROM results WHERE results.row_index = inputs.row_index AND {FAILED} AND sample_index = 0)
"""


class StoredRun:
    """The results and notes of a run. Everything read is verified: damage raises `OutputError`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._connection.create_function("kind", 2, _kind, deterministic=True)

    @property
    def is_closed(self) -> bool:
        return False

    @property
    def is_empty(self) -> bool:
        """Whether no run has read a row into it."""
        return not self._count("inputs")

    @property
    def num_results(self) -> int:
        return self._count("results")

    @property
    def num_rows(self) -> int:
        """The number of rows that have a result; each has a first sample."""
        return self._count("results WHERE sample_index = 0")

    @property
    def num_complete_rows(self) -> int:
        """The number of rows that have all of their samples or have failed."""
        [(most,)] = self._read("SELECT coalesce(max(num_samples), 0) FROM inputs")
        return self.num_results if most in (0, 1) else self._count(COMPLETE)

    @property
    def num_failed_rows(self) -> int:
        return self._count(f"(SELECT DISTINCT row_index FROM results WHERE {FAILED})")

    def reasons(self, most: int) -> list[tuple[str, int]]:
        """Return at most `most` reasons why rows failed, each with its number of rows, in input order.

        Each is the first of its kind: reasons that differ only in numbers count as one.
        """
        rows = self._read(REASONS, most)
        return [(_reason(source, error), number) for source, error, _, number in rows]

    def first_error(self) -> Result | None:
        return next(self._results(FAILED), None)

    def results(self) -> Iterator[Result]:
        """Yield every result, in input order."""
        return self._results()

    def results_after(self, last: tuple[int, int]) -> Iterator[Result]:
        """Yield the results after an (index, sample_index), in input order."""
        return self._results(last=last)

    def complete_results(self) -> Iterator[Result]:
        """Yield every result of a finished run, in input order: for each row read, all samples or its failure.

        Raises `OutputError` at the first one that is missing or damaged.
        """
        groups = groupby(self.results(), key=lambda result: result.index)
        for index, num_samples in self.num_samples_after(-1):
            found, samples = next(groups, (None, iter(())))
            number, has_failed = 0, False
            for number, result in enumerate(samples, 1):
                has_failed = has_failed or (number == 1 and result.error is not None)
                self._check(found == index and result.sample_index == number - 1)
                yield result
            self._check(number == num_samples or (number == 1 and has_failed))  # a failed row has one result
        self._check(next(groups, None) is None)

    def num_samples_after(self, index: int) -> Iterator[tuple[int, int]]:
        """Yield the rows read after an index, as (index, number of samples the row should have)."""
        query = "SELECT row_index, num_samples FROM inputs WHERE row_index > ? ORDER BY row_index LIMIT ?"
        while page := list(self._read(query, index, PAGE_ROWS)):
            yield from page
            index = page[-1][0]

    def manifest(self) -> dict[str, Any]:
        """Return what was recorded about the run, by name."""
        found = {}
        for name, value, digest in self._read("SELECT name, value, hash FROM manifest"):
            self._check(digest == hash_of((name, value)))
            found[name] = json.loads(value)
        return found

    def _results(self, condition: str = "TRUE", last: tuple[int, int] = (-1, -1)) -> Iterator[Result]:
        query = (
            f"SELECT {COLUMNS} FROM results WHERE {condition} AND (row_index, sample_index) > (?, ?) "
            f"ORDER BY row_index, sample_index LIMIT {PAGE_ROWS}"
        )
        while page := list(self._read(query, *last)):
            for *cells, digest in page:
                self._check(digest == hash_of(cells))
                result = to_result(cells)
                last = result.index, result.sample_index
                yield result

    def _check(self, is_whole: bool) -> None:
        if not is_whole:
            raise OutputError(f"{self.path} {DAMAGED}")

    def _count(self, rows: str) -> int:
        [(number,)] = self._read(f"SELECT count(*) FROM {rows}")
        return int(number)

    def _read(self, query: str, *values: object) -> Generator[tuple[Any, ...], None, None]:
        with in_one_line(self.path):
            cursor = self._connection.execute(query, values)
            try:
                yield from iter(cursor.fetchone, None)
            finally:
                if not self.is_closed:  # otherwise it was closed with the connection and must not be used
                    cursor.close()


@contextmanager
def open_stored(path: Path) -> Iterator[StoredRun]:
    """Open the store of a run that may still be running, for reading. Raises the errors of `open_for_reading`."""
    with open_for_reading(path) as connection:
        yield StoredRun(path, connection)


def _reason(source: object, error: object) -> str:
    """Return an error without the place at its start."""
    text = error.decode("utf-8", "replace") if isinstance(error, bytes) else str(error)
    return text.removeprefix(f"{source}: ")


def _kind(source: object, error: object) -> str:
    return re.sub(r"\d+", "#", _reason(source, error).replace(",", ""))
