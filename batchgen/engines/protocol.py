"""What the pipeline needs from an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from batchgen.records import EngineStats, Sequence


class Engine(Protocol):
    """What the pipeline needs from an engine; a fake engine needs no model."""

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue unfinished rows. They may be added at any time; `wants_rows` says when it makes sense."""
        ...

    @property
    def wants_rows(self) -> int:
        """How many more rows the engine could use now."""
        ...

    def step(self) -> list[Sequence]:
        """Run one forward and return the rows that it finished."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether the engine has no rows in progress: every row that was added has been returned."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Drop all rows in progress."""
        ...


def finish_all(engine: Engine, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
    """Run sequences through an idle engine and yield each one when it is finished."""
    engine.add(sequences)
    while not engine.is_idle:
        yield from engine.step()
