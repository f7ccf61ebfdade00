"""The run store: every finished Result, durable, in one SQLite file with one writer.

What is committed survives a kill, a crash and a full disk. Knows nothing of models, engines and output formats.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from batchgen.errors import InputError, InUseError, OutputError
from batchgen.formats.writing import to_json
from batchgen.records import Request, Result

COMMIT_EVERY_S = 1.0
LOCK_PATIENCE_S = 1.0  # of two that open a file at the same moment one has to wait for the other to step back
IN_USE = "is in use by another run: wait for it, or name another output"
APPLICATION_ID = 0x62617467  # "batg", in the file's header
SCHEMA_VERSION = 2
# docs/store.md says what stands where.
TABLES = """
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE inputs (row_index INTEGER PRIMARY KEY, digest BLOB);
CREATE TABLE results (
    row_index INTEGER NOT NULL, id, sample_index INTEGER NOT NULL, prompt TEXT, text TEXT, finish_reason TEXT,
    num_prompt_tokens INTEGER, num_output_tokens INTEGER, error TEXT, metadata TEXT, model TEXT,
    input_ids TEXT, output_ids TEXT, batch_index INTEGER, padded_length INTEGER, source TEXT,
    messages TEXT, reasoning TEXT, tool_calls TEXT,
    PRIMARY KEY (row_index, sample_index)
);
"""
FIELDS = [field.name for field in fields(Result)]  # the columns of `results`, but that `index` is its row_index
JSON_FIELDS = {"metadata", "input_ids", "output_ids", "messages", "tool_calls"}
INSERT = f"INSERT OR REPLACE INTO results (row_index, {', '.join(FIELDS[1:])}) VALUES ({', '.join('?' * len(FIELDS))})"
FAILED_ROWS = "row_index IN (SELECT row_index FROM results WHERE finish_reason = 'error')"
WHOLE_NUMBER = re.compile(rb"-?\d+")


class Store:
    """An open store: only one process can have it. Results are committed at least once a second.

    Raises `OutputError` where the file cannot be opened or written, is in use, or is not a store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[tuple[int, int]] = set()  # (index, sample_index) already there, of rows that are not complete
        self._failure: sqlite3.Error | None = None
        self._lock = threading.RLock()
        self._closing = threading.Event()
        with _in_one_line(path):
            self._connection = _connect(path)
        threading.Thread(target=self._commit_often, daemon=True).start()

    # What is there.

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    @property
    def is_empty(self) -> bool:
        """Whether no run has read a row into it."""
        return not self._count("inputs")

    @property
    def num_results(self) -> int:
        return self._count("results")

    @property
    def num_errors(self) -> int:
        return self._count("results WHERE finish_reason = 'error'")

    def first_error(self) -> Result | None:
        return next(self._results("WHERE finish_reason = 'error'"), None)

    def results(self) -> Iterator[Result]:
        """Every result, in input order."""
        return self._results("")

    def manifest(self) -> dict[str, Any]:
        """What was noted of the run, by name."""
        return {name: json.loads(value) for name, value in self._read("SELECT name, value FROM manifest")}

    def _results(self, condition: str) -> Iterator[Result]:
        columns = ", ".join(["row_index", *FIELDS[1:]])
        for row in self._read(f"SELECT {columns} FROM results {condition} ORDER BY row_index, sample_index"):
            yield _to_result(row)

    def _count(self, rows: str) -> int:
        [(number,)] = self._read(f"SELECT count(*) FROM {rows}")
        return int(number)

    def _read(self, query: str, *values: object) -> Generator[tuple[Any, ...], None, None]:
        with _in_one_line(self.path):
            cursor = self._connection.execute(query, values)
            try:
                yield from iter(cursor.fetchone, None)
            finally:
                if not self.is_closed:  # else it went with the connection, and may not be asked any more
                    cursor.close()

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
        mend = "restore the input, or start anew with --overwrite"
        with closing(self._read(query)) as read_before:  # a query that is still open would keep the file locked
            for index, digest, num_done in read_before:
                request = next(source, None)
                if request is None:
                    raise InputError(f"the input ends after {index} rows, and {self.path} was begun with more: {mend}")
                if digest is None:
                    self._note(request)
                elif digest != digest_of(request):
                    raise InputError(f"{request.place} has changed since {self.path} was begun: {mend}")
                if num_done < request.sampling.num_samples:
                    samples = self._read("SELECT sample_index FROM results WHERE row_index = ?", index)
                    self.done.update((index, sample_index) for (sample_index,) in samples)
                    yield request

    def _note(self, request: Request) -> None:
        self._write("INSERT OR REPLACE INTO inputs VALUES (?, ?)", request.index, digest_of(request))

    def add(self, result: Result) -> None:
        """Keeps a finished result; it is on the disk within a second."""
        self._write(INSERT, *(_to_cell(name, getattr(result, name)) for name in FIELDS))

    def note(self, name: str, value: object) -> None:
        """Keeps a JSON value in the manifest, in place of the last of that name."""
        self._write("INSERT OR REPLACE INTO manifest VALUES (?, ?)", name, to_json(value))

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
        with self._lock, _in_one_line(self.path):
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
                self.commit()
            except OutputError:  # raised again by the next write
                return

    # How it ends.

    def close(self, *, as_single_file: bool = False) -> None:
        """Commits and lets go of the file; `as_single_file` leaves no journal that a reader would need."""
        self._closing.set()
        with self._lock, _in_one_line(self.path):
            try:
                self.commit()
                if as_single_file:
                    self._connection.execute("PRAGMA journal_mode = DELETE")
            finally:
                self._connection.close()

    def discard(self) -> None:
        """Removes the file, while it is locked: who waits for the lock must not get one that has no name any more."""
        self._closing.set()
        with self._lock, _in_one_line(self.path):
            try:
                with suppress(sqlite3.Error):  # on a full disk the journal goes when the connection is closed
                    self._connection.rollback()
                    self._connection.execute("PRAGMA journal_mode = DELETE")
                remove_store(self.path)
            finally:
                self._connection.close()


def remove_store(path: Path) -> None:
    """Removes a store's journal, and the file last: who is killed in between leaves none without the other."""
    for ending in ("-wal", "-shm", "-journal", ""):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def digest_of(request: Request) -> bytes:
    """What tells whether a row of the input is still the same: 16 bytes of all that its results depend on."""
    content = [request.id, request.prompt, asdict(request.sampling), request.metadata, request.error]
    if request.conversation:
        content.append(asdict(request.conversation))
    return blake2b(json.dumps(content).encode(), digest_size=16).digest()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_PATIENCE_S, isolation_level=None, check_same_thread=False)
    try:
        opened = _identity(path)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # held until the connection is closed
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN EXCLUSIVE")
        if opened != _identity(path):  # whoever had it has removed it
            raise InUseError(f"{path} {IN_USE}")
        _check_schema(connection, path)
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a name stands for."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables of a new file; refuses another program's."""
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if found == [0, 0] and not tables:
        for statement in TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif found[0] != APPLICATION_ID:
        raise OutputError(f"{path} is another program's database: name another output")
    elif found[1] != SCHEMA_VERSION:
        raise OutputError(f"{path} was made by another version of batchgen: finish it with that, or --overwrite")


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        # Whoever had the file may have removed it while this process waited for the lock.
        if code & 0xFF == sqlite3.SQLITE_BUSY or code == sqlite3.SQLITE_READONLY_DBMOVED:
            raise InUseError(f"{path} {IN_USE}") from error
        raise OutputError(f"{path} {_reason(code, error)}") from error


def _reason(code: int, error: sqlite3.Error) -> str:
    go_on = "then run the same command with --resume"
    reasons = {
        sqlite3.SQLITE_FULL: f"cannot grow, the disk is full: free some space, {go_on}",
        sqlite3.SQLITE_IOERR: f"cannot be written, disk I/O error: mend the disk or free some space, {go_on}",
        sqlite3.SQLITE_CANTOPEN: "cannot be made: is its folder there, and can you write to it?",
        sqlite3.SQLITE_NOTADB: "is not a store of batchgen: move it away",
        sqlite3.SQLITE_CORRUPT: "is damaged: move it away, or start anew with --overwrite",
    }
    return reasons.get(code & 0xFF, f"cannot be opened or written: {error}")


def _to_cell(name: str, value: object) -> object:
    """What SQLite holds of a field: numbers and text as they are.

    A blob where it has no such thing: whole numbers beyond 64 bits by their digits, text with lone surrogates.
    """
    if name in JSON_FIELDS:
        return to_json(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value).encode()
    if isinstance(value, str):
        with suppress(UnicodeEncodeError):
            value.encode()
            return value
        return value.encode("utf-8", "surrogatepass")
    return value


def _to_result(row: tuple[Any, ...]) -> Result:
    values = {name: _from_cell(name, cell) for name, cell in zip(FIELDS, row, strict=True)}
    for name in ("input_ids", "output_ids"):
        values[name] = tuple(values[name])
    return Result(**values)


def _from_cell(name: str, cell: Any) -> Any:
    if name in JSON_FIELDS:
        return json.loads(cell)
    if isinstance(cell, bytes):
        return int(cell) if WHOLE_NUMBER.fullmatch(cell) else cell.decode("utf-8", "surrogatepass")
    return cell
