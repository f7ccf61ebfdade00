"""SIGKILL at random moments, again and again, each followed by `--resume`: no row lost or duplicated, same bytes."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torture.commands import (
    FAKE,
    REAL,
    difference,
    is_being_written,
    left_over,
    right_bytes,
    run,
    start,
    wait_until,
    write_rows,
)
from torture.lab import Check, Trial, Tried

KILLS = 10  # of one run, before it may end
FAKE_ROWS, REAL_ROWS = 10_000, 500
BATCH_S = "0.02"
# How long a finished row may stay uncommitted, and how long a commit takes.
COMMIT_S = 1.0
COMMIT_TAKES_S = 0.3
LATE = 0.25  # share of kills that wait for the last moments, when the file is written and the store is removed
GOING_ON = re.compile(r"continuing .*: ([\d,]+) results? kept")


def fake_rows(folder: Path) -> tuple[Path, bytes]:
    return _whole(folder, FAKE_ROWS, FAKE)


def real_rows(folder: Path) -> tuple[Path, bytes]:
    return _whole(folder, REAL_ROWS, (*REAL, "--max-new-tokens", "20"))


def _whole(folder: Path, number: int, program: tuple[str, ...]) -> tuple[Path, bytes]:
    """Return the prompts, and what an uninterrupted run produces for them."""
    prompts, output = write_rows(folder / "rows.jsonl", number), folder / "out.jsonl"
    ended = run([*program, prompts, "-o", output])
    assert ended.code == 0, ended.stderr
    return prompts, right_bytes(output, number) if program == FAKE else output.read_bytes()


@dataclass(slots=True)
class Log:
    """The fake engine's log: which process finished which row, and when."""

    path: Path
    killed: dict[str, float] = field(default_factory=dict)  # process -> when

    def lost(self) -> list[tuple[int, float]]:
        """Return the rows that ran again, and how long before the kill they had been finished."""
        runs: dict[int, list[tuple[str, float]]] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            process, index, moment = line.split()
            runs.setdefault(int(index), []).append((process, float(moment)))
        again = ((index, before) for index, times in runs.items() for before in times[:-1])
        return [(index, self.killed.get(process, float("inf")) - moment) for index, (process, moment) in again]


def fake_session(trial: Trial) -> Iterator[Tried]:
    """A run of many rows that is killed ten times and then finishes."""
    prompts, whole = trial.lab.once(fake_rows)
    output, log = trial.folder / "out.jsonl", Log(trial.folder / "log")
    command = [*FAKE, prompts, "-o", output]
    environment = {"TORTURE_BATCH_S": BATCH_S, "TORTURE_LOG": str(log.path)}
    for number in range(KILLS):
        running = start(_resumed(command, output), environment=environment)
        if trial.draw.random() < LATE:
            wait_until(partial(is_being_written, trial.folder), running)
            delay_s = trial.draw.expovariate(20)
        else:
            delay_s = trial.draw.uniform(0.05, 1.5)
        running.sleep(delay_s)
        log.killed[str(running.process.pid)] = time.time()
        running.signal(signal.SIGKILL)
        ended = running.wait()
        problem = ended.problem(0, 137)
        if ended.code == 0:  # it was faster than the kill
            problem = problem or difference(output, whole)
            output.unlink(missing_ok=True)
            log.path.unlink()
        yield Tried(f"kill {number}", problem)
    yield from _end(trial, command, output, whole)
    yield from _redone(trial, log)


def _redone(trial: Trial, log: Log) -> Iterator[Tried]:
    lost = log.lost()
    for index, age_s in lost:
        if age_s > COMMIT_S + COMMIT_TAKES_S * trial.lab.patience:
            yield Tried("rows in flight", f"row {index} was finished {age_s:.2f} s before the kill, and is run again")
    if lost:
        trial.measure("oldest row that a kill cost, s", max(age_s for _, age_s in lost))


def real_session(trial: Trial) -> Iterator[Tried]:
    """The same with the bundled model; the number of kept results must never decrease."""
    prompts, whole = trial.lab.once(real_rows)
    output = trial.folder / "out.jsonl"
    command = [*REAL, "--max-new-tokens", "20", prompts, "-o", output]
    kept = 0
    for number in range(KILLS):
        running = start(_resumed(command, output))
        if trial.draw.random() < LATE:
            wait_until(partial(is_being_written, trial.folder), running)
            delay_s = trial.draw.expovariate(20)
        else:
            delay_s = trial.draw.uniform(0.1, 6)
        running.sleep(delay_s)
        running.signal(signal.SIGKILL)
        ended = running.wait()
        problem = ended.problem(0, 137)
        if found := GOING_ON.search(ended.stderr):
            before, kept = kept, int(found[1].replace(",", ""))
            problem = problem or (f"{before} results were kept, and now {kept}" if kept < before else None)
        if ended.code == 0:
            problem = problem or difference(output, whole)
            output.unlink(missing_ok=True)
            kept = 0
        yield Tried(f"kill {number}", problem)
    yield from _end(trial, command, output, whole)


def _resumed(command: list[object], output: Path) -> list[object]:
    """Return the same command, with `--resume` if there is something to resume, as a user would."""
    store = output.with_name(output.name + ".run.db")
    return [*command, "--resume"] if store.exists() or output.exists() else command


def _end(trial: Trial, command: list[object], output: Path, whole: bytes) -> Iterator[Tried]:
    """Run it to the end without a kill; only counted if something is wrong."""
    ended = run([*command, "--resume"])
    expected = ["out.jsonl", "log"] if (trial.folder / "log").exists() else ["out.jsonl"]
    problem = ended.problem(0) or difference(output, whole) or left_over(trial.folder, *expected)
    if problem:
        yield Tried("the run after the last kill", problem)


CHECKS = [
    Check(
        "kill-fake",
        "random SIGKILL of the process group, 10,000 rows, fake engine: none lost, none twice, same bytes",
        lambda lab: range(lab.some(200 // KILLS)),
        fake_session,
    ),
    Check(
        "kill-real",
        "random SIGKILL of the process group, 500 rows, bundled model: none lost, none twice, same bytes",
        lambda lab: range(lab.some(30 // KILLS)),
        real_session,
    ),
]
