"""Join the rows of two outputs by id and sample in bounded memory: rows that are far apart wait on disk."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from functools import cached_property
from heapq import merge
from itertools import zip_longest
from operator import attrgetter
from tempfile import TemporaryFile
from typing import IO

from batchgen.records import Result

Pair = tuple[Result | None, Result | None]
Entry = tuple[int, bytes, bytes]  # a row's position in its output, and two byte strings
MOST_HELD = 4096  # rows of one output that wait in memory for their counterpart
NUM_PARTS = 128  # of the data on disk: each part is joined separately, in memory
CHUNK_BYTES = 1 << 15  # of a part that are written at a time
HEAD = struct.Struct("<QII")  # of an entry: its position, and the lengths of its byte strings
VALUES = attrgetter(*(field.name for field in fields(Result)))


def join_results(a: Iterable[Result], b: Iterable[Result]) -> Iterator[Pair]:
    """Each row and sample of both outputs, paired with its counterpart, or with None if it has none.

    Ids may repeat: the first is paired with the first, the second with the second, and so on. Pairs come as soon as
    both rows are read, until too many rows of one output wait for their counterparts. The rest come at the end, in the
    order of `a`, followed by the rows that are only in `b`.
    """
    with ExitStack() as stack:
        left, right = _Waiting(stack), _Waiting(stack)
        for place, (row_a, row_b) in enumerate(zip_longest(a, b)):
            if left.is_full or right.is_full:  # from here on all rows go to disk, to keep equal ids in order
                left.spill(row_a, place)
                right.spill(row_b, place)
                continue
            if row_a and row_b and not (left.rows or right.rows) and key_of(row_a) == key_of(row_b):
                yield row_a, row_b
                continue
            if row_a and (like := left.meet(row_a, right, place)):
                yield row_a, like
            if row_b and (like := right.meet(row_b, left, place)):
                yield like, row_b
        for waiting in (left, right):
            waiting.spill()
        yield from _join(left.on_disk, right.on_disk, stack)


class _Waiting:
    """Rows of one output that wait for their counterpart: a few in memory by key, and `on_disk` if there are many."""

    def __init__(self, stack: ExitStack) -> None:
        self.rows: OrderedDict[bytes, deque[tuple[int, Result]]] = OrderedDict()
        self.on_disk = _Parts(stack)
        self.is_full = False

    def meet(self, row: Result, other: _Waiting, place: int) -> Result | None:
        """Return the row of the other output that waits for this one; otherwise store this row and return None."""
        key = key_of(row)
        if waiting := other.rows.get(key):
            _, like = waiting.popleft()
            if not waiting:
                del other.rows[key]
            return like
        self.rows.setdefault(key, deque()).append((place, row))
        self.is_full = len(self.rows) > MOST_HELD
        return None

    def spill(self, row: Result | None = None, place: int = 0) -> None:
        """Move all waiting rows to disk, followed by this row."""
        for key, rows in self.rows.items():
            for earlier, waiting in rows:
                self._put(key, earlier, waiting)
        self.rows.clear()
        if row:
            self._put(key_of(row), place, row)

    def _put(self, key: bytes, place: int, row: Result) -> None:
        self.on_disk.add(hash(key) % NUM_PARTS, place, key, pickle.dumps(VALUES(row), protocol=5))


class _Parts:
    """Entries in a temporary file, by the part that each belongs to, in order."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._held = [bytearray() for _ in range(NUM_PARTS)]
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in range(NUM_PARTS)]  # (offset, length)
        self._end = 0

    @cached_property
    def _file(self) -> IO[bytes]:
        return self._stack.enter_context(TemporaryFile())

    def add(self, part: int, place: int, first: bytes, second: bytes) -> None:
        held = self._held[part]
        held += HEAD.pack(place, len(first), len(second)) + first + second
        if len(held) >= CHUNK_BYTES:
            self._write(part)

    def _write(self, part: int) -> None:
        held = self._held[part]
        self._file.seek(self._end)
        self._file.write(held)
        self._chunks[part].append((self._end, len(held)))
        self._end += len(held)
        held.clear()

    def read(self, part: int) -> Iterator[Entry]:
        for start, length in self._chunks[part]:
            self._file.seek(start)
            yield from _entries(self._file.read(length))
        yield from _entries(bytes(self._held[part]))


def _entries(chunk: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(chunk):
        place, num_first, num_second = HEAD.unpack_from(chunk, at)
        middle = at + HEAD.size + num_first
        yield place, chunk[at + HEAD.size : middle], chunk[middle : middle + num_second]
        at = middle + num_second


def _join(a: _Parts, b: _Parts, stack: ExitStack) -> Iterator[Pair]:
    """Join each part in memory, and merge the results by position."""
    pairs, only_in_b = _Parts(stack), _Parts(stack)
    for part in range(NUM_PARTS):
        waiting: dict[bytes, deque[tuple[int, bytes]]] = defaultdict(deque)
        for place, key, row in b.read(part):
            waiting[key].append((place, row))
        for place, key, row in sorted(a.read(part)):
            likes = waiting.get(key)
            pairs.add(part, place, row, likes.popleft()[1] if likes else b"")
        for place, row in sorted(entry for entries in waiting.values() for entry in entries):
            only_in_b.add(part, place, b"", row)
    for parts in (pairs, only_in_b):
        for _, row_a, row_b in merge(*map(parts.read, range(NUM_PARTS))):
            left = _result(row_a)
            yield left, left if row_a == row_b else _result(row_b)


def _result(row: bytes) -> Result | None:
    return Result(*pickle.loads(row)) if row else None


def key_of(result: Result) -> bytes:
    """The key that rows are joined by: the sample index, and the id as text, or the index if there is no id."""
    name = result.index if result.id is None else result.id
    return f"{result.sample_index} {name}".encode("utf-8", "surrogatepass")
