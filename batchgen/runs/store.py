"""The run store: every finished Result, durable, in one SQLite file with one writer.

What is committed survives a kill, a crash and a full disk; what is damaged is never given out. Knows nothing of models,
engines and output formats.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from batchgen.errors import OVERWRITE, InputError, OutputError
from batchgen.formats.fields import to_json
from batchgen.formats.whole import temporary_name
from batchgen.records import Request, Result
from batchgen.runs.cells import FIELDS, digest_of, hash_of, to_cells
from batchgen.runs.database import COLUMNS, PRIVATE, Connection, connect, file_beside, in_one_line, remove_store
from batchgen.runs.stored import StoredRun

COMMIT_EVERY_S = 1.0
INSERT = f"INSERT OR REPLACE INTO results ({COLUMNS}) VALUES ({', '.join('?' * (len(FIELDS) + 1))})"
FAILED_ROWS = "row_index IN (SELECT row_index FROM results WHERE finish_reason = 'error')"


class Store(StoredRun):
    """A store that is being written: only one process can have it. Results are committed at least once a second.

    `on_second` is called as often, before what it notes is committed with the rest.
    A new file has `mode`, where that is None the user's umask. Raises `OutputError` where the file cannot be opened or
    written, is in use, is damaged, or is not a store.
    """

    def __init__(self, path: Path, mode: int | None = PRIVATE) -> None:
        self.done: set[tuple[int, int]] = set()  # (index, sample_index) already there, of rows that are not complete
        self._failure: sqlite3.Error | None = None
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self.on_second: Callable[[], object] = lambda: None
        self._connection: Connection
        with in_one_line(path):
            super().__init__(path, connect(path, mode))
        threading.Thread(target=self._commit_often, daemon=True).start()

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    @property
    def allows_readers(self) -> bool:
        """Whether other processes can read it meanwhile."""
        return self._connection.is_shared

    def count_tokens(self) -> tuple[int, int]:
        """Of prompts and of answers, over all results."""
        query = "SELECT coalesce(sum(num_prompt_tokens), 0), coalesce(sum(num_output_tokens), 0) FROM results"
        [(prompt_tokens, output_tokens)] = self._read(query)
        return int(prompt_tokens), int(output_tokens)

    # What a run adds.

    def unfinished(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The requests that still have samples to run; `done` says which samples of these are there already.

        Rows that were read before must be what they were: nothing is yielded before all of them have been compared.
        Raises `InputError` for the first that is not.
        """
        source = iter(requests)
        yield from list(self._compare(source))
        for request in source:
            self._note(request)
            yield request

    def _compare(self, source: Iterator[Request]) -> Iterator[Request]:
        """Goes through the rows that were read before."""
        query = (
            "SELECT row_index, digest, count(sample_index) FROM inputs LEFT JOIN results USING (row_index) "
            "GROUP BY row_index ORDER BY row_index"
        )
        fix = f"restore the input, or start over with {OVERWRITE}"
        with closing(self._read(query)) as read_before:  # a query that is still open would keep the file locked
            for index, digest, num_done in read_before:
                request = next(source, None)
                if request is None:
                    raise InputError(f"the input ends after {index} rows, and {self.path} was started with more: {fix}")
                if digest is None:
                    self._note(request)
                elif digest != digest_of(request):
                    raise InputError(f"{request.place} has changed since {self.path} was begun: {fix}")
                if num_done < request.sampling.num_samples:
                    samples = self._read("SELECT sample_index FROM results WHERE row_index = ?", index)
                    self.done.update((index, sample_index) for (sample_index,) in samples)
                    yield request

    def _note(self, request: Request) -> None:
        samples = request.sampling.num_samples
        self._write("INSERT OR REPLACE INTO inputs VALUES (?, ?, ?)", request.index, digest_of(request), samples)

    def add(self, result: Result) -> None:
        """Keeps a finished result; it is on the disk within a second."""
        cells = to_cells(result)
        self._write(INSERT, *cells, hash_of(cells))

    def note(self, name: str, value: object) -> None:
        """Keeps a JSON value in the manifest, in place of the last of that name."""
        text = to_json(value)
        self._write("INSERT OR REPLACE INTO manifest VALUES (?, ?, ?)", name, text, hash_of((name, text)))

    def put_beside(self, text: str) -> None:
        """Replaces the small file beside it, for those who cannot read the store; that it cannot be ends no run."""
        file = file_beside(self.path)
        with self._lock, suppress(OSError):
            if not self.is_closed:
                temporary = temporary_name(file)
                mode = stat.S_IMODE(self.path.stat().st_mode)
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
                    stream.write(text)
                temporary.replace(file)

    def show_columns(self, names: tuple[str, ...]) -> None:
        """A view `answers` of the results, with a column for each of the fields of what was parsed.

        Without names they are those of the first row that has an object.
        """
        first = next((result.parsed for result in self.results() if isinstance(result.parsed, dict)), {})
        fields = [name for name in names or first if '"' not in name]  # SQLite's paths cannot have it
        own = ["row_index", "id", "sample_index", "prompt", "text", "finish_reason", "error"]
        for name in fields:
            shown, path = f"parsed.{name}" if name in own else name, name.replace("'", "''")
            own.append(f"""json_extract(parsed, '$."{path}"') AS "{shown}\"""")
        self._write("DROP VIEW IF EXISTS answers")
        self._write(f"CREATE VIEW answers AS SELECT {', '.join(own)} FROM results")

    def forget_note(self, name: str) -> None:
        self._write("DELETE FROM manifest WHERE name = ?", name)

    def forget(self, index: int) -> None:
        """The row of that index counts as never read: what the input says now will be run."""
        self._write("UPDATE inputs SET digest = NULL WHERE row_index = ?", index)

    def forget_errors(self) -> None:
        """All rows that failed count as never read."""
        self._write(f"UPDATE inputs SET digest = NULL WHERE {FAILED_ROWS}")
        self._write(f"DELETE FROM results WHERE {FAILED_ROWS}")

    def clear(self) -> None:
        """Forgets everything."""
        for table in ("results", "inputs", "manifest"):
            self._write(f"DELETE FROM {table}")

    def _write(self, statement: str, *values: object) -> None:
        with self._in_order():
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN")
            self._connection.execute(statement, values)

    def commit(self) -> None:
        with self._in_order():
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """One writer at a time, and none after one has failed.

        SQLite has then undone what was not committed: rows that were noted now would stand behind a gap.
        """
        with self._lock, in_one_line(self.path):
            if self._failure:
                raise self._failure
            try:
                yield
            except sqlite3.Error as error:
                self._failure = error
                with suppress(sqlite3.Error):
                    self._connection.rollback()
                raise

    def _commit_often(self) -> None:
        while not self._closing.wait(COMMIT_EVERY_S):
            try:
                self.on_second()
                self.commit()
            except OutputError:  # raised again by the next write
                return

    # How it ends.

    def close(self, *, as_single_file: bool = False) -> None:
        """Commits and lets go of the file; `as_single_file` leaves no journal that a reader would need."""
        self._closing.set()
        with self._lock, in_one_line(self.path):
            try:
                self.commit()
                if as_single_file:
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    with suppress(sqlite3.OperationalError):  # who still reads it needs the journal, empty as it is
                        self._connection.execute("PRAGMA journal_mode = DELETE")
            finally:
                file_beside(self.path).unlink(missing_ok=True)
                self._connection.close()

    def discard(self) -> None:
        """Removes the file, while it is locked: who waits for the lock must not get one that has no name any more."""
        self._closing.set()
        with self._lock, in_one_line(self.path):
            try:
                with suppress(sqlite3.Error):  # on a full disk the journal goes when the connection is closed
                    self._connection.rollback()
                    self._connection.execute("PRAGMA busy_timeout = 0")  # its readers keep what they have
                    self._connection.execute("PRAGMA journal_mode = DELETE")
                remove_store(self.path)
            finally:
                self._connection.close()
