"""Run tasks in turn within a time limit, several times each if it allows. Knows no model: `run` does the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from batchgen.bench.facts import Point, Sample, Task
from batchgen.errors import BatchgenError, first_line, is_out_of_memory
from batchgen.planning.batches import step_work

MOST_RUNS = 5
NO_TIME = "no time"
OUT_OF_MEMORY = "memory"

Run = Callable[[Task], Sample]


class NoMemoryError(BatchgenError):
    """Memory ran out in a task; the engine may have continued with fewer rows, but that is another task."""


def sweep(
    tasks: Sequence[Task],
    run: Run,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_task: Callable[[Task], None] = lambda task: None,
) -> list[Point]:
    """Run each task, from the fewest rows up, then all of them again (A B A B), while they are likely to end in time.

    A failed task becomes a point with its problem, and the rest continues. The first task always runs.
    """
    end = clock() + seconds
    samples: dict[Task, list[Sample]] = {task: [] for task in tasks}
    problems: dict[Task, str] = {}
    for turn in range(MOST_RUNS):
        for task in tasks:
            if task in problems or len(samples[task]) < turn:
                continue
            guess = guess_seconds(task, samples)
            if guess is not None and clock() + guess > end:
                continue
            on_task(task)
            try:
                samples[task].append(run(task))
            except Exception as error:  # noqa: BLE001 - a point that fails is a finding
                problems[task] = OUT_OF_MEMORY if _ran_out(error) else first_line(error)
    return [_point(task, samples[task], problems.get(task)) for task in tasks]


def guess_seconds(task: Task, samples: dict[Task, list[Sample]]) -> float | None:
    """Estimate a task's seconds: as long as last time, otherwise scaled from the largest task of its workload that ran.

    None if nothing is known.
    """
    if samples[task]:
        return samples[task][-1].seconds
    done = [other for other, runs in samples.items() if runs and other.workload == task.workload]
    if not done:
        return None
    nearest = max(done, key=lambda other: other.rows)
    return samples[nearest][-1].seconds * step_work(task.rows) / step_work(nearest.rows)


def _point(task: Task, samples: list[Sample], problem: str | None) -> Point:
    """The point of a task. If one run failed, the task has failed, whatever earlier runs measured."""
    if problem or not samples:
        return Point(task, problem=problem or NO_TIME)
    return Point(task, tuple(samples))


def _ran_out(error: Exception) -> bool:
    return isinstance(error, NoMemoryError) or is_out_of_memory(error)
