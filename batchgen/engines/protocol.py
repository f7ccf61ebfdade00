"""What the pipeline needs of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from batchgen.records import EngineStats, Sequence


class Engine(Protocol):
    """What the pipeline needs of an engine; a fake one needs no model."""

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Takes rows, none of them finished. They may come at any time; `wants_rows` says when it makes sense."""
        ...

    @property
    def wants_rows(self) -> int:
        """How many more rows it could use now."""
        ...

    def step(self) -> list[Sequence]:
        """One forward, and the rows that it has finished."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing in hand: every row that was added has come out."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Drops what is in hand."""
        ...


def finish_all(engine: Engine, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
    """Runs sequences through an engine that has nothing else to do; each comes out when it is finished."""
    engine.add(sequences)
    while not engine.is_idle:
        yield from engine.step()
