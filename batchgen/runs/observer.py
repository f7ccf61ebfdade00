"""What a run reports to its caller, and what it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

from batchgen.records import Result, SamplingParams
from batchgen.runs.pace import RunProgress


class Observer:
    """Watches a run and may stop it. This base class does nothing; callers override the methods they need."""

    def say(self, line: str) -> None:
        """Receive a warning that the user should see."""

    def note(self, line: str) -> None:
        """Receive a message about the run's course, for a user who is watching."""

    def on_progress(self, progress: RunProgress) -> None:
        """Receive the progress of a run whose steps are made elsewhere; called now and then."""

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Return a context for something that takes time."""
        return nullcontext()

    def if_it_ends_here(self, line: str) -> AbstractContextManager[object]:
        """Return a context; if the process ends in it without a chance to say why, the user should see the line."""
        return nullcontext()

    def steps(self) -> AbstractContextManager[object]:
        """Return a context for everything that `should_stop` can end early."""
        return nullcontext()

    def generating(
        self, count_left: Callable[[], int | None], num_kept: int, sampling: SamplingParams
    ) -> AbstractContextManager[object]:
        """Return a context for the generation.

        `count_left` reads the input and returns the number of results to come, or None if unknown; `num_kept` results
        exist already.
        """
        return nullcontext()

    def on_step(self, num_tokens: int) -> None:
        """Note that the engine made one token for each of `num_tokens` rows; a negative number takes tokens back."""

    def track(self, results: Iterable[Result], stream: IO[Any] | None = None) -> Iterator[Result]:
        """Pass on results; the consumer writes them to `stream`, if there is one."""
        return iter(results)

    def scored(self, results: Iterable[Result]) -> Iterable[Result]:
        """Pass on all scored rows of a whole run in order, including rows from before an interruption."""
        return results

    def should_stop(self) -> bool:
        """Whether the run should end soon. Called at every step; may raise to end the run at once."""
        return False
