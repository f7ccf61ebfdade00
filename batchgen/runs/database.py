"""The file of a run store: opened by one process at a time, made with nobody else's right to read it; its tables."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from batchgen.errors import OVERWRITE, RESUME, InUseError, OutputError
from batchgen.runs.cells import FIELDS

LOCK_PATIENCE_S = 1.0  # of two that open a file at the same moment one has to wait for the other to step back
IN_USE = "is in use by another run: wait for it, or name another output"
APPLICATION_ID = 0x62617467  # "batg", in the file's header
SCHEMA_VERSION = 4
DAMAGED = f"is damaged: move it away, or start anew with {OVERWRITE}"
PRIVATE = 0o600
# docs/store.md says what stands where.
TABLES = """
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL, hash BLOB NOT NULL);
CREATE TABLE inputs (row_index INTEGER PRIMARY KEY, digest BLOB, num_samples INTEGER NOT NULL);
CREATE TABLE results (
    row_index INTEGER NOT NULL, id, sample_index INTEGER NOT NULL, prompt TEXT, text TEXT, finish_reason TEXT,
    num_prompt_tokens INTEGER, num_output_tokens INTEGER, error TEXT, metadata TEXT, model TEXT,
    input_ids TEXT, output_ids TEXT, batch_index INTEGER, padded_length INTEGER, source TEXT,
    messages TEXT, reasoning TEXT, tool_calls TEXT, endpoint TEXT, cumulative_logprob REAL, logprobs TEXT,
    hash BLOB NOT NULL,
    PRIMARY KEY (row_index, sample_index)
);
"""
COLUMNS = ", ".join(["row_index", *FIELDS[1:], "hash"])


def connect(path: Path, mode: int | None = PRIVATE) -> sqlite3.Connection:
    """The store at a path, locked until the connection is closed; a new one has `mode`, by default the user's umask.

    Raises `OutputError` where there is something else, `InUseError` where another process has it, `sqlite3.Error`.
    """
    _make_file(path, mode)
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


def _make_file(path: Path, mode: int | None) -> None:
    """An empty file, where there is none: SQLite itself would follow a link, and let everybody read."""
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{path} is a link that leads nowhere: remove it")
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    with suppress(OSError):  # there already; or SQLite says why it cannot be made
        descriptor = os.open(path, flags, 0o666 if mode is None else mode)
        try:
            if mode is not None:
                os.chmod(descriptor, mode)  # noqa: PTH101 - whatever the umask
        finally:
            os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Whether another process has the store at a path. Writes nothing."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=0, uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return False


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
        mend = f"finish it with that, or start anew with {OVERWRITE}"
        raise OutputError(f"{path} was made by another version of batchgen: {mend}")


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        # Whoever had the file may have removed it while this process waited for the lock.
        if code & 0xFF == sqlite3.SQLITE_BUSY or code == sqlite3.SQLITE_READONLY_DBMOVED:
            raise InUseError(f"{path} {IN_USE}") from error
        raise OutputError(f"{path} {_reason(code, error)}") from error


def _reason(code: int, error: sqlite3.Error) -> str:
    go_on = f"then run the same command with {RESUME}"
    reasons = {
        sqlite3.SQLITE_FULL: f"cannot grow, the disk is full: free some space, {go_on}",
        sqlite3.SQLITE_IOERR: f"cannot be written, disk I/O error: mend the disk or free some space, {go_on}",
        sqlite3.SQLITE_CANTOPEN: "cannot be made: is its folder there, and can you write to it?",
        sqlite3.SQLITE_NOTADB: "is not a store of batchgen: move it away",
        sqlite3.SQLITE_CORRUPT: DAMAGED,
    }
    if str(error).startswith(("no such", "Could not decode")):
        return DAMAGED
    return reasons.get(code & 0xFF, f"cannot be opened or written: {error}")


def remove_store(path: Path) -> None:
    """Removes a store's journal, and the file last: who is killed in between leaves none without the other."""
    for ending in ("-wal", "-shm", "-journal", ""):
        path.with_name(path.name + ending).unlink(missing_ok=True)
