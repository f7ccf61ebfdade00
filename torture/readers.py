"""Readers beside a run that is killed and resumed: they never wait, and never see a row that the output lacks."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

from batchgen.errors import BatchgenError, InputError
from batchgen.runs.results import read_results
from batchgen.runs.status import read_status
from torture.commands import FAKE, run, start
from torture.kills import fake_rows
from torture.lab import Check, Trial, Tried

SESSIONS, KILLS = 6, 10
BATCH_S = "0.02"
WAIT_S = 1.0  # maximum time for a look at a run's progress
PAUSE_S = 0.05

Seen = dict[tuple[int, int], str]  # (index, sample) -> text


class Readers:
    """A status, the results and a plain SQLite reader, which repeatedly read in their own thread."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.store = output.with_name(output.name + ".run.db")
        self.seen: Seen = {}
        self.problems: list[str] = []
        self.num_looks = 0
        self.longest_s = 0.0
        self._most_rows = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._is_over.wait(PAUSE_S):
            for look in (self._status, self._sqlite, self._results):
                started = time.monotonic()
                try:
                    with suppress(InputError):  # no run yet
                        look()
                except (BatchgenError, sqlite3.Error, FileNotFoundError) as error:
                    if self.store.exists():  # otherwise the run ended, and its store was removed while it was opened
                        self.problems.append(f"{look.__name__}: {error!r}")
                if look != self._results:  # `_results` reads as long as there are rows
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
            self.num_looks += 1

    def _status(self) -> None:
        rows = read_status(self.output).rows_done
        if rows < self._most_rows:
            self.problems.append(f"{self._most_rows} rows were done, and then {rows}")
        self._most_rows = rows

    def _sqlite(self) -> None:
        if not self.store.exists():
            return
        with closing(sqlite3.connect(f"{self.store.as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'results'").fetchone():
                rows = connection.execute("SELECT row_index, sample_index, text FROM results LIMIT 500")
                self._note((index, sample, text) for index, sample, text in rows)

    def _results(self) -> None:
        self._note((result.index, result.sample_index, result.text) for result in read_results(self.output))

    def _note(self, rows: Iterator[tuple[int, int, str]]) -> None:
        for index, sample, text in rows:
            if self.seen.setdefault((index, sample), text) != text:
                self.problems.append(f"row {index} had two texts")


def read_beside(trial: Trial) -> Iterator[Tried]:
    """A run that is killed ten times with readers beside it; everything they saw must be in its output."""
    prompts, _ = trial.lab.once(fake_rows)
    output = trial.folder / "out.jsonl"
    command = [*FAKE, prompts, "-o", output]
    with Readers(output) as readers:
        for number in range(KILLS):
            resume = ["--resume"] if readers.store.exists() or output.exists() else []
            running = start([*command, *resume], environment={"TORTURE_BATCH_S": BATCH_S})
            running.sleep(trial.draw.uniform(0.4, 2.0))
            running.signal(signal.SIGKILL)
            yield Tried(f"kill {number}", running.wait().problem(0, 137))
        ended = run([*command, "--resume"])
    there = _texts(output) if ended.code == 0 else {}
    strange = [place for place, text in readers.seen.items() if there.get(place) != text]
    problem = ended.problem(0) or next(iter(readers.problems), None)
    if strange:
        problem = problem or f"{len(strange)} rows that were read are not in the end, the first {strange[0]}"
    if not readers.seen:
        problem = problem or "the readers saw nothing"
    if readers.longest_s > WAIT_S * trial.lab.patience:
        problem = problem or f"a reader waited {readers.longest_s:.2f} s"
    trial.measure("longest look of a reader, s", readers.longest_s)
    trial.measure("looks of a session", readers.num_looks)
    yield Tried("what readers saw", problem)


def _texts(output: Path) -> Seen:
    rows = (json.loads(line) for line in output.read_text(encoding="utf-8").splitlines())
    return {(row["index"], row["sample_index"]): row["text"] for row in rows}


CHECKS = [
    Check(
        "readers",
        "status, results and sqlite3 beside 60 kills and resumes: never wait, never see a row that is not in the end",
        lambda lab: range(lab.some(SESSIONS)),
        read_beside,
    ),
]
