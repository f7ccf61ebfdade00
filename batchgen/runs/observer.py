"""What a run says to its caller, and asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

from batchgen.records import Result, SamplingParams
from batchgen.runs.pace import RunProgress


class Observer:
    """Watches a run and may stop it. This one is quiet; a caller overrides what it wants to know."""

    def say(self, line: str) -> None:
        """What a person should know who did not ask."""

    def note(self, line: str) -> None:
        """How the run goes on, for a person who watches."""

    def on_progress(self, progress: RunProgress) -> None:
        """How far a run is whose steps are made elsewhere; said now and then."""

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Around something that takes time."""
        return nullcontext()

    def steps(self) -> AbstractContextManager[object]:
        """Around everything that `should_stop` can end soon."""
        return nullcontext()

    def generating(
        self, count_left: Callable[[], int | None], num_kept: int, sampling: SamplingParams
    ) -> AbstractContextManager[object]:
        """Around the generation. `count_left` reads the input for the number of results to come, None if unknown;
        `num_kept` are there already.
        """
        return nullcontext()

    def on_step(self, num_tokens: int) -> None:
        """The engine made one token for each of `num_tokens` rows; below 0 they are taken back."""

    def track(self, results: Iterable[Result], stream: IO[Any] | None = None) -> Iterator[Result]:
        """Passes results on, to a consumer that writes them to `stream` if there is one."""
        return iter(results)

    def scored(self, results: Iterable[Result]) -> Iterable[Result]:
        """Passes on every row that a whole run has scored, in order; rows of an interrupted run's beginning too."""
        return results

    def should_stop(self) -> bool:
        """Whether the run is to end soon. Asked at every step; may raise what ends it at once."""
        return False
