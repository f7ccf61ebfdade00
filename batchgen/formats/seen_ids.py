"""Track which ids came before: an 8-byte hash of each, in a private database that moves to disk as it grows."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

from batchgen.records import RowId

CACHE_KIB = 65_536  # for ids and their locations; more go to a file
COUNTS_CACHE_KIB = 16_384  # for ids and their counts
LONGEST_INDEX = 18  # digits of a number that may be a row's index


def _open(columns: str, cache_kib: int) -> sqlite3.Connection:
    """A temporary unnamed database. Rows are read by one thread at a time, but not always the same one."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute(f"PRAGMA cache_size = -{cache_kib}")
    database.execute("BEGIN")  # never committed: nothing has to be kept
    database.execute(f"CREATE TABLE seen (hash INTEGER PRIMARY KEY, {columns})")
    return database


def _key(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class SeenIds:
    """The location where each id first occurred."""

    def __init__(self) -> None:
        self._places = _open("place BLOB", CACHE_KIB)

    def place_of(self, custom_id: str, source: str) -> str | None:
        """The location where an id first occurred; None for a new id, which is recorded with `source`."""
        key, place = _key(custom_id), source.encode("utf-8", "surrogatepass")
        if self._places.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, place)).rowcount:
            return None
        [found] = self._places.execute("SELECT place FROM seen WHERE hash = ?", (key,)).fetchone()
        return bytes(found).decode("utf-8", "surrogatepass")


class Occurrences:
    """How often each id occurred before, over all rows of a run in input order.

    A row without an id counts by its index. Until a row has an id, nothing needs to be stored: indices are unique.
    """

    def __init__(self) -> None:
        self._num_bare = 0  # rows at the beginning of the run that had no id
        self._counts: sqlite3.Connection | None = None

    def next(self, index: int, row_id: RowId | None) -> int:
        """0 for the first row with an id, 1 for the next row with the same id, and so on."""
        if row_id is None and self._counts is None:
            self._num_bare = index + 1
            return 0
        if self._counts is None:
            self._counts = _open("times INTEGER", COUNTS_CACHE_KIB)
        name = str(index if row_id is None else row_id)
        return self._add(self._counts, _key(name)) + self._was_bare(name)

    def _add(self, counts: sqlite3.Connection, key: int) -> int:
        if counts.execute("INSERT OR IGNORE INTO seen VALUES (?, 1)", (key,)).rowcount:
            return 0
        [times] = counts.execute("SELECT times FROM seen WHERE hash = ?", (key,)).fetchone()
        counts.execute("UPDATE seen SET times = times + 1 WHERE hash = ?", (key,))
        return int(times)

    def _was_bare(self, name: str) -> bool:
        """Whether `name` is the index of one of the rows without an id at the beginning."""
        is_number = len(name) <= LONGEST_INDEX and name.isascii() and name.isdecimal()
        return is_number and name == str(int(name)) and int(name) < self._num_bare
