"""How far a run is: a live bar on a terminal, else a plain line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from batchgen.records import Result
from batchgen.render.screen import Screen, plural
from batchgen.text import clock_text


class ProgressReport:
    """How far a run is: a live bar on a terminal, else a plain line soon after the start and then one a minute.

    A run that is over sooner has no such line. Progress is counted in tokens, so that it moves at each step and not
    only when a batch is done.
    """

    FIRST_S, EVERY_S = 5.0, 60.0

    def __init__(
        self,
        screen: Screen,
        total_rows: int | None,
        max_new_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        num_kept: int = 0,
        unit: str = "row",
    ) -> None:
        self.screen = screen
        self.total_rows = total_rows
        self.max_new_tokens = max_new_tokens
        self.clock = clock
        self.num_kept = num_kept
        self.unit = unit  # what is counted: where rows have several samples, each of them
        self.num_rows = self.num_tokens = self._tokens_in_flight = 0
        self._started = clock()
        self._next_line = self._started + self.FIRST_S
        self._bar = Progress(
            TextColumn("{task.fields[detail]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=screen.console,
            transient=True,
            disable=not screen.is_live,
            expand=True,
        )
        total = total_rows * max_new_tokens if total_rows else None
        self._task = self._bar.add_task("", total=total, detail="generating")

    def __enter__(self) -> ProgressReport:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step(self, num_tokens: int) -> None:
        """The engine made one token for each of `num_tokens` rows."""
        self.num_tokens += num_tokens
        self._tokens_in_flight += num_tokens
        self._report()

    def on_result(self, result: Result) -> None:
        self.num_rows += 1
        self._tokens_in_flight = max(0, self._tokens_in_flight - result.num_output_tokens)
        self._report()

    def track(self, results: Iterable[Result], output: IO[Any] | None = None) -> Iterator[Result]:
        """Passes results on; the bar steps aside while the consumer writes to the same terminal, and at the end."""
        shares_terminal = self.screen.is_live and output is not None and output.isatty()
        try:
            for result in results:
                self.on_result(result)
                with self._aside() if shares_terminal else nullcontext():
                    yield result
        finally:
            self._bar.stop()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        self._bar.stop()
        yield
        self._bar.start()

    def _report(self) -> None:
        elapsed_s = max(self.clock() - self._started, 1e-9)
        done = self.num_rows * self.max_new_tokens + self._tokens_in_flight
        there = self.num_kept + self.num_rows
        whole = f"{there:,} of {plural(self.num_kept + self.total_rows, self.unit)}" if self.total_rows else ""
        detail = f"{whole or plural(there, self.unit)}, {self.num_tokens / elapsed_s:,.0f} tokens/s"
        self._bar.update(self._task, completed=done, detail=detail)
        if not self.screen.console.is_terminal and self.clock() >= self._next_line:
            self._next_line = self.clock() + self.EVERY_S
            self.screen.say(f"{clock_text(elapsed_s)}: {detail}{self._time_left(done, elapsed_s)}")

    def _time_left(self, done: int, elapsed_s: float) -> str:
        if not self.total_rows or not done:
            return ""
        left = self.total_rows * self.max_new_tokens - done
        return f", about {clock_text(left / done * elapsed_s)} left"
