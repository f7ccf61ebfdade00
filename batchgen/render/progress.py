"""How far a run is: a live bar on a terminal, otherwise one plain line per minute, or JSON for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import IO, Any, Protocol

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from batchgen.records import Result
from batchgen.render.screen import Screen, plural
from batchgen.runs.pace import Pace, RunProgress
from batchgen.text import clock_text


class ProgressView(Protocol):
    """Where progress is shown: first after `first_s` seconds, then every `every_s`."""

    first_s: float
    every_s: float

    def start(self) -> None: ...
    def show(self, progress: RunProgress, share: float | None) -> None:
        """Show the progress; `share` of the work is done, counted in tokens, or None if unknown."""

    def stop(self) -> None: ...


class ProgressBar:
    """One line on a terminal, removed when the run ends."""

    first_s, every_s = 0.0, 0.5

    def __init__(self, screen: Screen) -> None:
        columns = TextColumn("{task.fields[detail]}"), BarColumn(bar_width=None), TaskProgressColumn()
        self._bar = Progress(*columns, console=screen.console, transient=True, expand=True, refresh_per_second=2)
        self._task = self._bar.add_task("", total=None, detail="generating")

    def start(self) -> None:
        self._bar.start()

    def show(self, progress: RunProgress, share: float | None) -> None:
        total = None if share is None else 1.0
        self._bar.update(self._task, total=total, completed=share or 0.0, detail=progress_text(progress))

    def stop(self) -> None:
        self._bar.stop()


class ProgressLog:
    """A line soon after the start and then one per minute; a shorter run prints none."""

    first_s, every_s = 5.0, 60.0

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def start(self) -> None:
        pass

    def show(self, progress: RunProgress, share: float | None) -> None:
        self._screen.say(f"{clock_text(progress.elapsed_s)}: {progress_text(progress)}")

    def stop(self) -> None:
        pass


class ProgressEvents(ProgressLog):
    """One JSON object per second."""

    first_s, every_s = 0.0, 1.0

    def show(self, progress: RunProgress, share: float | None) -> None:
        self._screen.event("progress", **asdict(progress))


def view_on(screen: Screen) -> ProgressView | None:
    """Return how a screen shows progress; None for a quiet one."""
    if screen.as_json:
        return ProgressEvents(screen)
    if screen.quiet:
        return None
    return ProgressBar(screen) if screen.is_live else ProgressLog(screen)


class ProgressReport:
    """Counts what a run does and shows it. It counts tokens, so that progress moves at each step.

    `total` is the number of results to come, None if unknown; `num_kept` results exist already.
    """

    def __init__(
        self,
        screen: Screen,
        total: int | None,
        max_new_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        num_kept: int = 0,
        unit: str = "row",
    ) -> None:
        self.screen = screen
        self.unit = unit  # what is counted: rows, or samples if rows have several
        self._clock = clock
        self._pace = Pace(max_new_tokens, clock)
        self._pace.begin(total, num_kept)
        self._view = view_on(screen)
        self._next = clock() + (self._view.first_s if self._view else 0.0)
        self._has_ended = False

    def __enter__(self) -> ProgressReport:
        if self._view:
            self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def on_step(self, num_tokens: int) -> None:
        """Count one token for each of `num_tokens` rows."""
        self._pace.on_step(num_tokens)
        self._report()

    def on_result(self, result: Result) -> None:
        self._pace.on_result(result)
        self._report()

    def track(self, results: Iterable[Result], output: IO[Any] | None = None) -> Iterator[Result]:
        """Pass on results; the bar is hidden while the consumer writes to the same terminal, and at the end."""
        shares_terminal = self.screen.is_live and output is not None and output.isatty()
        try:
            for result in results:
                self.on_result(result)
                with self._aside() if shares_terminal else nullcontext():
                    yield result
        finally:
            self._end()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        if self._view:
            self._view.stop()
        yield
        if self._view:
            self._view.start()

    def _report(self) -> None:
        if self._view and (now := self._clock()) >= self._next:
            self._next = now + self._view.every_s
            self._show(self._view)

    def _show(self, view: ProgressView) -> None:
        total, done = self._pace.total_tokens, self._pace.done_tokens
        view.show(self._pace.progress(self.unit), done / total if total else None)

    def _end(self) -> None:
        """Show the last state to programs; people get the closing line."""
        if self._view and not self._has_ended:
            self._has_ended = True
            if isinstance(self._view, ProgressEvents):
                self._show(self._view)
            self._view.stop()


def progress_text(progress: RunProgress) -> str:
    """Return rows or samples, failures, tokens/s and time left as one line."""
    done, total = progress.done, progress.total
    parts = [plural(done, progress.unit) if total is None else f"{done:,} of {plural(total, progress.unit)}"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"about {clock_text(progress.seconds_left)} left")
    return ", ".join(parts)
