"""Which passages one forward scores: those of similar length, or with shared prompts of similar length.

The number of columns that a row is padded to depends only on its own length, so its numbers do not depend on the other
rows. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from batchgen.records import Passage, Sequence

LEAST_PREFIX, LEAST_SAVED = 12, 24  # minimum tokens of a prompt that is computed once, and minimum that this must save
Room = Callable[[int], int]  # how many rows of a number of columns may run together


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One passage of a row; `number` is its index in the row."""

    sequence: Sequence
    number: int

    @property
    def passage(self) -> Passage:
        return self.sequence.passages[self.number]


@dataclass(frozen=True, slots=True, eq=False)
class ScoringWork:
    """Groups of passages for one forward; those of a group share their first `prefix` tokens, computed once.

    After these, every passage is padded to `columns`. If `columns` is 0, nothing follows the prompts: they are padded
    to `prefix`.
    """

    groups: list[list[Item]]
    prefix: int
    columns: int

    @property
    def items(self) -> list[Item]:
        return [item for group in self.groups for item in group]

    @property
    def num_rows(self) -> int:
        """Rows of its largest forward."""
        return sum(_rows_of(group, self.columns) for group in self.groups)

    @property
    def sequences(self) -> list[Sequence]:
        """Each row once."""
        return list({id(item.sequence): item.sequence for item in self.items}.values())

    def halves(self) -> tuple[ScoringWork, ScoringWork]:
        """Split the work in two; choices of one row keep their prompt, and with it their bits."""
        if len(self.groups) > 1:
            half = len(self.groups) // 2
            parts = self.groups[:half], self.groups[half:]
        else:
            half = len(self.items) // 2
            parts = [self.items[:half]], [self.items[half:]]
        return ScoringWork(parts[0], self.prefix, self.columns), ScoringWork(parts[1], self.prefix, self.columns)


def _step(num_tokens: int) -> int:
    """Return the multiple that lengths are rounded up to, so that rows of similar length run together."""
    return 8 if num_tokens <= 128 else 16


def padded(num_tokens: int, borders: Iterable[int] = ()) -> int:
    """Return the columns for a row: up to 15 more than its tokens, and the same for rows of nearly its length.

    A row within a border stays within it including its pads.

    >>> [padded(number) for number in (1, 9, 70, 300)], padded(70, [71])
    ([8, 16, 72, 304], 71)
    """
    columns = -(-num_tokens // _step(num_tokens)) * _step(num_tokens)
    return min([columns, *(border for border in borders if border >= num_tokens)])


def plan_work(sequences: Iterable[Sequence], room: Room, *, share: bool, borders: Rows[int] = ()) -> list[ScoringWork]:
    """Plan all passages of rows, the longest first. A forward never combines positions on both sides of a border."""
    shared: dict[tuple[int, int], list[list[Item]]] = {}
    alone: dict[int, list[list[Item]]] = {}
    for sequence in sequences:
        items = [Item(sequence, number) for number in range(len(sequence.passages))]
        prefix = shared_tokens([item.passage for item in items]) if share else 0
        longest = max(len(item.passage.fed) for item in items)
        if prefix and not any(prefix <= border < longest for border in borders):
            shared.setdefault(_key(prefix, longest, borders), []).append(items)
        else:
            for item in items:
                alone.setdefault(padded(len(item.passage.fed), borders), []).append([item])
    work = [part for (prefix, columns), groups in shared.items() for part in _cut(groups, prefix, columns, room)]
    work += [part for columns, groups in alone.items() for part in _cut(groups, 0, columns, room)]
    return sorted(work, key=lambda part: -(part.prefix + part.columns))


def _key(prefix: int, longest: int, borders: Rows[int]) -> tuple[int, int]:
    """Return the columns of a prompt and of what follows it.

    The prompt is cut to a common length; its end counts as following.
    """
    if prefix == longest:
        return padded(prefix, borders), 0
    prefix = prefix // _step(prefix) * _step(prefix)
    return prefix, padded(longest - prefix, [border - prefix for border in borders])


def _rows_of(group: list[Item], columns: int) -> int:
    """Return the rows of a group in its largest forward."""
    return len(group) if columns else 1


def _cut(groups: list[list[Item]], prefix: int, columns: int, room: Room) -> Iterator[ScoringWork]:
    """Yield parts of as many rows as may run together. A larger group is cut, and its prompt computed for each part."""
    most = max(1, room(prefix + columns))
    longest = most if columns else max(map(len, groups))
    part: list[list[Item]] = []
    num_rows = 0
    for group in (whole[start : start + longest] for whole in groups for start in range(0, len(whole), longest)):
        if part and num_rows + _rows_of(group, columns) > most:
            yield ScoringWork(part, prefix, columns)
            part, num_rows = [], 0
        part.append(group)
        num_rows += _rows_of(group, columns)
    yield ScoringWork(part, prefix, columns)


def shared_tokens(passages: Rows[Passage]) -> int:
    """Return how many prompt tokens the choices of a row share, none of them scored; 0 if sharing does not pay."""
    if len(passages) < 2:
        return 0
    first, *others = (passage.token_ids for passage in passages)
    most = min(passage.start for passage in passages)
    common = next((place for place in range(most) if any(ids[place] != first[place] for ids in others)), most)
    return common if common >= LEAST_PREFIX and common * len(others) >= LEAST_SAVED else 0
