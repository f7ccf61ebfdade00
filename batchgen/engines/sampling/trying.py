"""Whether constraints can be used: each distinct one is tried once, in a separate process that may crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from batchgen.engines.sampling.grammars import LIMITS, SUBJECTS, in_one_line, source_of
from batchgen.records import Constraint, FieldError, Request, SamplingParams
from batchgen.records.sampling import CONSTRAINT_FIELDS

MOST_BYTES = 768 * 2**20  # of address space; a Python process with only the library uses 100 MiB
MOST_SECONDS = 10.0  # of processor time
# Multiple of that in wall-clock time. The process ends itself after its processor time, except on Windows, and a busy
# machine may give it little.
PATIENCE = 6 if os.name == "nt" else 30
TICK_S = 1.0  # if the machine sleeps or the process is suspended, at most one tick is counted
MOST_KEPT = 4096
MISSING = "needs another package: pip install llguidance"


def is_installed() -> bool:
    """Whether the library that constraints need is installed."""
    return find_spec("llguidance") is not None


class Trials:
    """What is known about constraints: why each one cannot be used, or None if it can.

    The library's verdicts are kept for all trials of this process; constraints that took too long, for this trial only.
    """

    _settled: ClassVar[dict[Constraint, str | None]] = {}

    def __init__(self, most_seconds: float = MOST_SECONDS) -> None:
        self._given_up: set[Constraint] = set()
        self._process: subprocess.Popen[str] | None = None
        self._most_seconds = most_seconds

    def problem(self, constraint: Constraint) -> str | None:
        """Return why a constraint cannot be used, in one line; None if it can."""
        if not is_installed():
            return f"{SUBJECTS[constraint.kind]} {MISSING}"
        if constraint not in self._settled and constraint not in self._given_up:
            self._try(constraint)
        if constraint in self._given_up:
            return f"{SUBJECTS[constraint.kind]} cannot be used: compiling it takes too much time or memory"
        return self._settled[constraint]

    def checked(self, request: Request) -> Request:
        """Return the request, failed if its constraint cannot be used."""
        constraint = None if request.error else request.sampling.constraint
        problem = self.problem(constraint) if constraint else None
        return replace(request, error=request.located(problem)) if problem else request

    def close(self) -> None:
        """Kill the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _try(self, constraint: Constraint) -> None:
        try:
            answer = self._ask(source_of(constraint))
        except ValueError as error:
            answer = str(error)
        if answer is None:
            self._given_up.add(constraint)
            return
        while len(self._settled) >= MOST_KEPT:
            del self._settled[next(iter(self._settled))]
        self._settled[constraint] = in_one_line(constraint, answer) if answer else None

    def _ask(self, grammar: str) -> str | None:
        """Return the library's error for a grammar, empty if there is none; None if its process did not survive."""
        process = self._process = self._process or _start(self._most_seconds)
        assert process.stdin
        assert process.stdout
        done = threading.Event()
        clock = threading.Thread(target=kill_in, args=(PATIENCE * self._most_seconds, process, done), daemon=True)
        clock.start()
        line = ""
        with suppress(OSError):
            process.stdin.write(json.dumps(grammar) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        done.set()
        if not line:
            self.close()
            return None
        return str(json.loads(line))


def kill_in(seconds: float, process: subprocess.Popen[str], done: threading.Event) -> None:
    """Kill a process after `seconds` in which this process was awake, unless it is `done`."""
    while seconds > 0:
        if done.wait(min(TICK_S, seconds)):
            return
        seconds -= TICK_S
    process.kill()


def _start(most_seconds: float) -> subprocess.Popen[str]:
    """Start a process that tries grammars. It ends when its input is closed, even if this process crashes."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("compiling.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,  # this process handles Ctrl-C
    )
    assert process.stdin
    with suppress(OSError):
        settings = {"path": sys.path, "bytes": MOST_BYTES, "seconds": most_seconds, "limits": LIMITS}
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
    return process


def check_rows(requests: Iterable[Request]) -> Iterator[Request]:
    """Yield the requests, those whose constraint cannot be used as failed."""
    with closing(Trials()) as trials:
        yield from map(trials.checked, requests)


def check_constraint(sampling: SamplingParams) -> None:
    """Raise `FieldError` if the constraint of the whole run cannot be used."""
    if not (constraint := sampling.constraint):
        return
    trials = Trials()
    try:
        problem = trials.problem(constraint)
    finally:
        trials.close()
    if problem:
        name = next(name for name in CONSTRAINT_FIELDS if getattr(sampling, name))
        raise FieldError(f"{{{name}}}: {problem}")
