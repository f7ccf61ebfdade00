"""The run store: every finished Result, stored durably in one SQLite file with one writer.

Committed results survive a kill, a crash and a full disk; damaged ones are never returned. Knows nothing about models,
engines or output formats.
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
    """A store open for writing; only one process can have it. Results are committed at least once per second.

    `on_second` is called before each of these commits, so that what it notes is committed too. A new file gets `mode`,
    or follows the user's umask if `mode` is None. Raises `OutputError` if the file cannot be opened or written, is in
    use, is damaged, or is not a store.
    """

    def __init__(self, path: Path, mode: int | None = PRIVATE) -> None:
        self.done: set[tuple[int, int]] = set()  # (index, sample_index) of stored samples of incomplete rows
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
        """Whether other processes can read the store while it is written."""
        return self._connection.is_shared

    def count_tokens(self) -> tuple[int, int]:
        """Return the numbers of prompt tokens and output tokens of all results."""
        query = "SELECT coalesce(sum(num_prompt_tokens), 0), coalesce(sum(num_output_tokens), 0) FROM results"
        [(prompt_tokens, output_tokens)] = self._read(query)
        return int(prompt_tokens), int(output_tokens)

    # What a run writes.

    def unfinished(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Yield the requests that still have samples to run; `done` tells which of their samples are already stored.

        Rows that were read before must be unchanged, and all of them are compared before anything is yielded. Raises
        `InputError` for the first row that differs.
        """
        source = iter(requests)
        yield from list(self._compare(source))
        for request in source:
            self._note(request)
            yield request

    def _compare(self, source: Iterator[Request]) -> Iterator[Request]:
        """Compare the rows that were read before; yield the incomplete ones."""
        query = (
            "SELECT row_index, digest, count(sample_index) FROM inputs LEFT JOIN results USING (row_index) "
            "GROUP BY row_index ORDER BY row_index"
        )
        fix = f"restore the input, or start over with {OVERWRITE}"
        with closing(self._read(query)) as read_before:  # an open query would keep the file locked
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
        """Store a finished result; it is on disk within a second."""
        cells = to_cells(result)
        self._write(INSERT, *cells, hash_of(cells))

    def note(self, name: str, value: object) -> None:
        """Store a JSON value in the manifest, replacing the previous one of that name."""
        text = to_json(value)
        self._write("INSERT OR REPLACE INTO manifest VALUES (?, ?, ?)", name, text, hash_of((name, text)))

    def put_beside(self, text: str) -> None:
        """Write the progress file for those who cannot read the store; a failure to write it is ignored."""
        file = file_beside(self.path)
        with self._lock, suppress(OSError):
            if not self.is_closed:
                temporary = temporary_name(file)
                mode = stat.S_IMODE(self.path.stat().st_mode)
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
                    stream.write(text)
                temporary.replace(file)

    def show_columns(self, names: tuple[str, ...]) -> None:
        """Create a view `answers` of the results, with one column per field of the parsed output.

        If `names` is empty, the fields are those of the first row with an object.
        """
        first = next((result.parsed for result in self.results() if isinstance(result.parsed, dict)), {})
        fields = [name for name in names or first if '"' not in name]  # SQLite's JSON paths do not allow it
        own = ["row_index", "id", "sample_index", "prompt", "text", "finish_reason", "error"]
        for name in fields:
            shown, path = f"parsed.{name}" if name in own else name, name.replace("'", "''")
            own.append(f"""json_extract(parsed, '$."{path}"') AS "{shown}\"""")
        self._write("DROP VIEW IF EXISTS answers")
        self._write(f"CREATE VIEW answers AS SELECT {', '.join(own)} FROM results")

    def forget_note(self, name: str) -> None:
        self._write("DELETE FROM manifest WHERE name = ?", name)

    def forget(self, index: int) -> None:
        """Mark a row as not read yet: it is then run with whatever the input says now."""
        self._write("UPDATE inputs SET digest = NULL WHERE row_index = ?", index)

    def forget_errors(self) -> None:
        """Mark all failed rows as not read yet."""
        self._write(f"UPDATE inputs SET digest = NULL WHERE {FAILED_ROWS}")
        self._write(f"DELETE FROM results WHERE {FAILED_ROWS}")

    def clear(self) -> None:
        """Delete everything."""
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
        """Allow one writer at a time, and none after a write has failed.

        After a failure SQLite has rolled back what was not committed; later rows would be stored after a gap.
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
            except OutputError:
                return

    # The end of the run.

    def close(self, *, as_single_file: bool = False) -> None:
        """Commit and close the file; with `as_single_file` no journal is left that a reader would need."""
        self._closing.set()
        with self._lock, in_one_line(self.path):
            try:
                self.commit()
                if as_single_file:
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    with suppress(sqlite3.OperationalError):  # current readers still need the journal, even empty
                        self._connection.execute("PRAGMA journal_mode = DELETE")
            finally:
                file_beside(self.path).unlink(missing_ok=True)
                self._connection.close()

    def discard(self) -> None:
        """Remove the file while it is locked, so that a process waiting for the lock never gets a deleted file."""
        self._closing.set()
        with self._lock, in_one_line(self.path):
            try:
                with suppress(sqlite3.Error):  # on a full disk the journal is removed when the connection closes
                    self._connection.rollback()
                    self._connection.execute("PRAGMA busy_timeout = 0")  # do not wait for readers: they keep their file
                    self._connection.execute("PRAGMA journal_mode = DELETE")
                remove_store(self.path)
            finally:
                self._connection.close()
