"""Rows of two outputs, joined by id and sample, in flat memory: those that come far apart wait on the disk."""

from __future__ import annotations

import pickle
import sqlite3
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import fields
from itertools import zip_longest
from operator import attrgetter

from batchgen.records import Result

Pair = tuple[Result | None, Result | None]
Key = tuple[bytes, int]
MOST_HELD = 4096  # rows of one output that wait in memory for their like
VALUES = attrgetter(*(field.name for field in fields(Result)))
TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE; PRAGMA cache_size = -16000;
CREATE TABLE a (place INTEGER PRIMARY KEY, key BLOB, sample INTEGER, row BLOB);
CREATE TABLE b (place INTEGER PRIMARY KEY, key BLOB, sample INTEGER, row BLOB);
"""
# Ids may stand more than once: the first with the first, the second with the second.
KEYS = """
CREATE TABLE {0}_keys AS
SELECT key, sample, row_number() OVER (PARTITION BY key, sample ORDER BY place) AS nth, place FROM {0};
CREATE UNIQUE INDEX {0}_by_key ON {0}_keys (key, sample, nth, place);
"""
BOTH = """
SELECT a.row, b.row FROM a_keys JOIN a USING (place) LEFT JOIN b_keys USING (key, sample, nth)
LEFT JOIN b ON b.place = b_keys.place ORDER BY a_keys.place
"""
ONLY_IN_B = """
SELECT NULL, b.row FROM b_keys JOIN b USING (place)
WHERE NOT EXISTS (SELECT 1 FROM a_keys WHERE (key, sample, nth) = (b_keys.key, b_keys.sample, b_keys.nth))
ORDER BY b_keys.place
"""


def join_results(a: Iterable[Result], b: Iterable[Result]) -> Iterator[Pair]:
    """Each row and sample of either, with its like of the other, or None where that has none.

    Pairs come as soon as both are read, and what is only in one, or stood far apart, at the end.
    """
    with closing(sqlite3.connect("")) as disk:  # a file that SQLite removes
        disk.executescript(TABLES)
        on_disk: set[int] = set()
        left, right = _Waiting("a", disk, on_disk), _Waiting("b", disk, on_disk)
        for place, (row_a, row_b) in enumerate(zip_longest(a, b)):
            if row_a and row_b and not (left.keys or right.keys or on_disk) and key_of(row_a) == key_of(row_b):
                yield row_a, row_b
                continue
            if row_a and (pair := left.meet(row_a, right, place)):
                yield row_a, pair
            if row_b and (pair := right.meet(row_b, left, place)):
                yield pair, row_b
        for waiting in (left, right):
            waiting.spill(0)
        if on_disk:
            yield from _join(disk)


class _Waiting:
    """Rows of one output whose like has not come: a few in memory, by their keys, the others on the disk.

    `on_disk` are the hashes of keys there, of both outputs: what comes later of these must not overtake the others.
    """

    def __init__(self, table: str, disk: sqlite3.Connection, on_disk: set[int]) -> None:
        self.keys: OrderedDict[Key, deque[tuple[int, Result]]] = OrderedDict()
        self._on_disk = on_disk
        self._insert = f"INSERT INTO {table} VALUES (?, ?, ?, ?)"
        self._disk = disk

    def meet(self, row: Result, other: _Waiting, place: int) -> Result | None:
        """What of the other output has waited for this row; else the row waits."""
        key = key_of(row)
        if self._on_disk and hash(key) in self._on_disk:
            self._put(key, place, row)
            return None
        if waiting := other.keys.get(key):
            _, found = waiting.popleft()
            if not waiting:
                del other.keys[key]
            return found
        self.keys.setdefault(key, deque()).append((place, row))
        self.spill(MOST_HELD)
        return None

    def spill(self, most: int) -> None:
        """Puts the oldest on the disk, until only so many keys are held."""
        while len(self.keys) > most:
            key, rows = self.keys.popitem(last=False)
            for place, row in rows:
                self._put(key, place, row)

    def _put(self, key: Key, place: int, row: Result) -> None:
        self._on_disk.add(hash(key))
        self._disk.execute(self._insert, (place, *key, pickle.dumps(VALUES(row), protocol=5)))


def _join(disk: sqlite3.Connection) -> Iterator[Pair]:
    for table in ("a", "b"):
        disk.executescript(KEYS.format(table))
    for query in (BOTH, ONLY_IN_B):
        for left, right in disk.execute(query):
            yield _result(left), _result(right)


def _result(row: bytes | None) -> Result | None:
    return None if row is None else Result(*pickle.loads(row))


def key_of(result: Result) -> Key:
    """What a row is joined by: its id as text, else its index; and the sample."""
    name = result.index if result.id is None else result.id
    return str(name).encode("utf-8", "surrogatepass"), result.sample_index
