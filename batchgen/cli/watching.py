"""Shows a run on the terminal: lines and a bar on stderr, signals that stop it, and how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

from batchgen.cli.exit_codes import SOME_ROWS_FAILED
from batchgen.cli.options.values import flag_of_parameter
from batchgen.cli.output import is_abandoned
from batchgen.cli.signals import Interrupts
from batchgen.errors import with_parameters
from batchgen.machine.last_words import last_words
from batchgen.records import Result, SamplingParams
from batchgen.render.progress import ProgressEvents, ProgressReport, progress_text
from batchgen.render.scores import left_out_lines, sums_line
from batchgen.render.screen import Screen, overrun, plural, summary
from batchgen.runs.ending import Ending, RanOn, stats_facts
from batchgen.runs.observer import Observer
from batchgen.runs.pace import RunProgress
from batchgen.text import with_id


class Watcher(Observer):
    """Shows a run on a screen and stops it on signals, or when standard output is used and its reader is gone."""

    def __init__(self, screen: Screen, interrupts: Interrupts, *, to_stdout: bool) -> None:
        self.screen = screen
        self.interrupts = interrupts
        self.to_stdout = to_stdout
        self.progress: ProgressReport | None = None

    def say(self, line: str) -> None:
        self.screen.say(with_parameters(line, flag_of_parameter))

    def note(self, line: str) -> None:
        self.say(line)

    def on_progress(self, progress: RunProgress) -> None:
        if self.screen.as_json:
            ProgressEvents(self.screen).show(progress, None)
        else:
            self.say(progress_text(progress))

    def waiting(self, what: str) -> AbstractContextManager[object]:
        return self.screen.waiting(what)

    def if_it_ends_here(self, line: str) -> AbstractContextManager[object]:
        return last_words(self.screen.error_text(with_parameters(line, flag_of_parameter)))

    @contextmanager
    def steps(self) -> Iterator[None]:
        self.interrupts.start_steps()
        yield
        self.interrupts.end_steps()

    @contextmanager
    def generating(
        self, count_left: Callable[[], int | None], num_kept: int, sampling: SamplingParams
    ) -> Iterator[None]:
        left = count_left() if self.screen.as_json or not self.screen.quiet else None
        unit = "row" if sampling.num_samples == 1 else "sample"
        self.progress = ProgressReport(self.screen, left, sampling.max_new_tokens, num_kept=num_kept, unit=unit)
        with self.progress:
            yield

    def on_step(self, num_tokens: int) -> None:
        if self.progress:
            self.progress.on_step(num_tokens)

    def track(self, results: Iterable[Result], stream: IO[Any] | None = None) -> Iterator[Result]:
        assert self.progress
        return self.progress.track(results, stream)

    def should_stop(self) -> bool:
        if self.to_stdout and is_abandoned(sys.stdout):
            raise BrokenPipeError
        return self.interrupts.stop_requested()


def report_ending(ending: Ending, screen: Screen, interrupts: Interrupts) -> int:
    """Print the closing lines on stderr, or with --progress json one object with everything; return the exit code."""
    exit_code = _close(ending, screen, interrupts)
    if screen.as_json:
        screen.event(
            "end",
            state="interrupted" if ending.was_stopped else "complete",
            exit_code=exit_code,
            written=[str(path) for path in ending.written],
            store=str(ending.store) if ending.store else None,
            stats=stats_facts(ending.stats, ending.ran_on),
        )
    return exit_code


def _close(ending: Ending, screen: Screen, interrupts: Interrupts) -> int:
    if ending.was_complete:
        return 0
    on = ending.ran_on
    dtype = on.precision if on.is_independent or ending.sums else f"{on.precision} (rows {on.bits})"
    line = summary(ending.stats, on.model, _ran_on(on), dtype, ending.sums is not None)
    if interrupts.stop_requested():
        screen.say(f"interrupted: {line}{_how_to_continue(ending)}")
        return interrupts.exit_code
    screen.say(line)
    if remark := overrun(ending.stats):
        screen.say(remark)
    if ending.sums and (facts := ending.sums.facts):
        screen.say(sums_line(facts))
        for left_out in left_out_lines(ending.sums):
            screen.say(left_out)
    if ending.written:
        screen.say(f"wrote {', '.join(map(str, ending.written))}")
    failures = ending.failures
    if failures.number:
        screen.error(
            f"{failures.number} of {failures.of} rows failed, the first{with_id(failures.first_id)}: "
            f"{failures.first_error}"
        )
        return SOME_ROWS_FAILED
    return 0


def _how_to_continue(ending: Ending) -> str:
    if ending.ran_on.is_on_ray:
        return "; to continue, run the same command with --resume"
    if not ending.store or not ending.kept:
        return ""
    kept = plural(ending.kept, "result")
    return f"; {kept} kept in {ending.store}: to continue, run the same command with --resume"


def _ran_on(on: RanOn) -> str:
    """Return for example `continuous on cpu (2 threads)`, where torch chooses the number; workers share the cores."""
    if on.is_on_ray:
        return f"{on.engine} in {plural(on.num_workers, 'worker')} on Ray ({on.device})"
    if on.num_threads is None:
        return f"{on.engine} on {on.device}"
    each = " each" if on.num_workers > 1 else ""
    return f"{on.engine} on {on.device} ({plural(on.num_threads, 'thread')}{each})"
