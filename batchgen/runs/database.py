"""The SQLite file of a run store and its tables: one process at a time writes it, others may read it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from batchgen.errors import OVERWRITE, RESUME, InputError, InUseError, OutputError, lack_of_resources
from batchgen.machine.process import is_file_size_limited
from batchgen.runs.cells import FIELDS
from batchgen.runs.locks import HELD, IN_USE, FileLock, allows_readers, identity, is_locked

LOCK_PATIENCE_S = 1.0  # if two processes open a file at once, one waits for the other to back off
APPLICATION_ID = 0x62617467  # "batg", in the file header
SCHEMA_VERSION = 6
DAMAGED = f"is damaged: move it away, or start over with {OVERWRITE}"
PRIVATE = 0o600
STATUS = "-status"  # appended to the store's name: the progress file of a run whose store cannot be read
# docs/store.md describes the tables.
TABLES = """
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL, hash BLOB NOT NULL);
CREATE TABLE inputs (row_index INTEGER PRIMARY KEY, digest BLOB, num_samples INTEGER NOT NULL);
CREATE TABLE results (
    row_index INTEGER NOT NULL, id, sample_index INTEGER NOT NULL, prompt TEXT, text TEXT, finish_reason TEXT,
    num_prompt_tokens INTEGER, num_output_tokens INTEGER, error TEXT, metadata TEXT, model TEXT,
    input_ids TEXT, output_ids TEXT, batch_index INTEGER, padded_length INTEGER, source TEXT,
    messages TEXT, reasoning TEXT, tool_calls TEXT, endpoint TEXT, cumulative_logprob REAL, logprobs TEXT,
    score TEXT, parsed TEXT, is_json INTEGER, hash BLOB NOT NULL,
    PRIMARY KEY (row_index, sample_index)
);
CREATE INDEX failed ON results (row_index) WHERE finish_reason = 'error';
"""
COLUMNS = ", ".join(["row_index", *FIELDS[1:], "hash"])


class Connection(sqlite3.Connection):
    """A connection to a store, with the lock on its file. `is_shared` says whether others can read at the same time."""

    lock: FileLock | None = None
    is_shared = False
    file: tuple[int, int] | None = None

    def close(self) -> None:
        super().close()  # first: closing any descriptor of the file drops SQLite's locks
        if self.file:
            HELD.discard(self.file)
        if self.lock:
            self.lock.close()


def connect(path: Path, mode: int | None = PRIVATE) -> Connection:
    """Open the store at a path and lock it until the connection is closed.

    A new file gets `mode`, or follows the user's umask if `mode` is None. Raises `OutputError` if the path is not a
    store, `InUseError` if another process has it open, and `sqlite3.Error`.
    """
    _make_file(path, mode)
    lock = _lock(path)
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        timeout=LOCK_PATIENCE_S,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
        uri=True,
    )
    connection.lock, connection.is_shared = lock, lock is not None
    try:
        opened = identity(path)
        _begin(connection)
        if opened != identity(path):  # its previous owner has removed it
            raise InUseError(f"{path} {IN_USE}")
        _check_schema(connection, path)
        connection.execute("COMMIT")
        if opened:
            connection.file = opened
            HELD.add(opened)
    except BaseException:
        connection.close()
        raise
    return connection


def _lock(path: Path) -> FileLock | None:
    """Take the lock that lets others read; return None if only SQLite's own lock is available, which does not."""
    if not allows_readers(path):
        return None
    try:
        return FileLock(path, LOCK_PATIENCE_S)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.access(path.parent, os.W_OK):  # another run has removed it
            raise InUseError(f"{path} {IN_USE}") from None
        return None  # SQLite will report why it cannot be opened


def _begin(connection: Connection) -> None:
    """Begin a transaction in a database with a write-ahead log."""
    if connection.is_shared:
        try:
            _execute(connection, "journal_mode = WAL", "synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
                raise
            connection.is_shared = False  # the file system does not support shared memory
        else:
            return
    _execute(connection, "locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL")
    connection.execute("BEGIN EXCLUSIVE")


def _execute(connection: sqlite3.Connection, *pragmas: str) -> None:
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the store of a run that may still be running; changes nothing and never makes the run wait.

    Raises `InputError` if the database is not a store of this version, `OutputError` if it cannot be read, and
    `InUseError` if a run does not share it.
    """
    with in_one_line(path):
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, timeout=LOCK_PATIENCE_S, uri=True, isolation_level=None)) as connection:
            if (found := _numbers(connection)) != [APPLICATION_ID, SCHEMA_VERSION]:
                another = "of another version of batchgen" if found[0] == APPLICATION_ID else "not batchgen's"
                raise InputError(f"{path} is a database {another}: name the output of a run")
            yield connection


def _make_file(path: Path, mode: int | None) -> None:
    """Create an empty file if there is none: SQLite itself would follow a link, and make the file readable by all."""
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{path} is a broken link: remove it")
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    with suppress(OSError):  # it exists, or SQLite will report why it cannot be created
        descriptor = os.open(path, flags, 0o666 if mode is None else mode)
        try:
            if mode is not None:
                os.chmod(descriptor, mode)  # noqa: PTH101 - whatever the umask
        finally:
            os.close(descriptor)


def is_database(path: Path) -> bool:
    """Whether a file is an SQLite database, judged by its first bytes."""
    with suppress(OSError), path.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\0"
    return False


def is_in_use(path: Path) -> bool:
    """Whether another process has the store at a path open. Writes nothing."""
    if is_locked(path):
        return True
    if identity(path) is None or allows_readers(path):
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=0, uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return False


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables of a new file; refuse a database of another program or version."""
    found = _numbers(connection)
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if found == [0, 0] and not tables:
        for statement in TABLES.split(";"):
            connection.execute(statement)
        _execute(connection, f"application_id = {APPLICATION_ID}", f"user_version = {SCHEMA_VERSION}")
    elif found[0] != APPLICATION_ID:
        raise OutputError(f"{path} is another program's database: name another output")
    elif found[1] != SCHEMA_VERSION:
        fix = f"finish it with that version, or start over with {OVERWRITE}"
        raise OutputError(f"{path} was made by another version of batchgen: {fix}")


def _numbers(connection: sqlite3.Connection) -> list[Any]:
    return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]


def file_beside(store: Path) -> Path:
    """Return the file where a run reports its progress if others cannot read its store."""
    return store.with_name(store.name + STATUS)


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        # The previous owner may have removed the file while this process waited for the lock.
        if code & 0xFF == sqlite3.SQLITE_BUSY or code == sqlite3.SQLITE_READONLY_DBMOVED:
            raise InUseError(f"{path} {IN_USE}") from error
        raise OutputError(f"{path} {_reason(code, error)}") from error


def _reason(code: int, error: sqlite3.Error) -> str:
    go_on = f"then run the same command with {RESUME}"
    reasons = {
        sqlite3.SQLITE_FULL: f"cannot grow, the disk is full: free some space, {go_on}",
        sqlite3.SQLITE_IOERR: f"cannot be written, disk I/O error: repair the disk or free some space, {go_on}",
        sqlite3.SQLITE_CANTOPEN: "cannot be created: check that its folder exists and is writable",
        sqlite3.SQLITE_NOTADB: "is not a batchgen store: move it away",
        sqlite3.SQLITE_CORRUPT: DAMAGED,
    }
    if str(error).startswith(("no such", "Could not decode")):
        return DAMAGED
    if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and (lack := _lack_of_files()):
        return f"cannot be opened, {lack}"
    if code & 0xFF == sqlite3.SQLITE_IOERR and is_file_size_limited():
        return f"cannot be written, perhaps for the limit on the size of files: raise it with ulimit -f, {go_on}"
    return reasons.get(code & 0xFF, f"cannot be opened or written: {error}")


def remove_store(path: Path) -> None:
    """Remove a store, the file last, so that a kill in between never leaves a journal without its file."""
    for ending in ("-wal", "-shm", "-journal", STATUS, "", "-wal", "-shm"):  # a reader may have recreated the last two
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _lack_of_files() -> str | None:
    """Return what to do if this process cannot open any more files, which SQLite does not tell from a bad folder."""
    try:
        with ExitStack() as files:
            for _ in range(8):  # the store, its log and index, locks, folders: more than one store needs
                files.enter_context(Path(os.devnull).open("rb"))
    except OSError as error:
        return lack_of_resources(error)
    return None
