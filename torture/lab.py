"""The parts of a check: cases, each with its own dice and folder, and their results. Knows no check."""

from __future__ import annotations

import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TextIO, TypeVar

T = TypeVar("T")


class Skipped(Exception):  # noqa: N818 - not an error
    """Something that a case needs is missing; the table says so."""


class Found(Exception):  # noqa: N818 - not an error
    """Something already failed to hold while a case was set up."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One thing that was tried; `problem` is what did not hold, or None."""

    what: str
    problem: str | None = None


class Lab:
    """Where checks run: a folder, the seed of all dice, the share of cases to try, and how busy the machine is.

    On a machine that also does other work, every time limit is multiplied by `patience`. `says` is where findings are
    printed.
    """

    def __init__(
        self, root: Path, seed: int = 0, share: float = 1.0, patience: float = 1.0, says: TextIO = sys.stderr
    ) -> None:
        self.root = root
        self.seed = seed
        self.share = share
        self.patience = patience
        self.says = says
        self.lock = Lock()  # of all tallies
        self.was_interrupted = False
        self._made: dict[str, Future[Any]] = {}

    def some(self, number: int) -> int:
        """Return `number`, or the requested share of it."""
        return max(1, round(number * self.share))

    def pick(self, cases: Sequence[T], number: int) -> Sequence[T]:
        """Return `number` of the cases (or the requested share of it), evenly spread.

        All of them if there are fewer.
        """
        number = min(len(cases), self.some(number))
        return [cases[i * len(cases) // number] for i in range(number)]

    def once(self, make: Callable[[Path], T]) -> T:
        """Return what several cases share: the first one makes it in its own folder.

        The others wait, or fail likewise.
        """
        name = make.__qualname__
        with self.lock:
            is_first = name not in self._made
            made = self._made.setdefault(name, Future())
        if is_first:
            try:
                folder = self.root / f"shared-{make.__module__}-{name}"
                folder.mkdir()
                made.set_result(make(folder))
            except Exception as error:  # noqa: BLE001 - for those that wait too
                made.set_exception(error)
        return made.result()  # type: ignore[no-any-return]


@dataclass(slots=True)
class Trial:
    """One case of a check: what it was given, its dice, its folder, and the maximum of each figure measured so far."""

    number: int
    given: Any
    draw: random.Random
    folder: Path
    lab: Lab
    figures: dict[str, float]

    def measure(self, name: str, value: float) -> None:
        with self.lab.lock:
            self.figures[name] = max(value, self.figures.get(name, value))


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, the cases that it is tried on, and how; `attempt` yields each thing that it tried."""

    name: str
    promise: str
    cases: Callable[[Lab], Sequence[Any]]
    attempt: Callable[[Trial], Iterator[Tried]]


@dataclass(slots=True)
class Tally:
    """The results of a check: failures with their cases, why cases were skipped, and where the check itself broke.

    If the check itself breaks (an assertion of its own during set-up), that says nothing about batchgen and is not a
    failure.
    """

    check: Check
    tried: int = 0
    seconds: float = 0.0
    failures: list[tuple[int, Tried]] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return self.tried - len(self.failures)


def perform(check: Check, lab: Lab, only: int | None = None) -> Tally:
    """Try every case, or `only` one; the folders of failed cases are kept."""
    return perform_all([check], lab, only=only)[0]


def perform_all(checks: Sequence[Check], lab: Lab, jobs: int = 1, only: int | None = None) -> list[Tally]:
    """Try the checks, `jobs` cases at a time. If interrupted, start no more cases; what was tried is counted."""
    tallies, begun = [Tally(check) for check in checks], []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for tally in tallies:
                begun.append(_begin(tally, lab, pool, only))
            for tally, cases in zip(tallies, begun, strict=True):
                for case in cases:
                    case.result()
                _tell(lab, f"{time.strftime('%H:%M:%S')} {tally.check.name}: {tally.held} of {tally.tried} held")
        except KeyboardInterrupt:
            lab.was_interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
    return tallies


def _begin(tally: Tally, lab: Lab, pool: ThreadPoolExecutor, only: int | None) -> list[Future[None]]:
    """Submit the cases of a check."""
    started = time.monotonic()
    cases: Sequence[Any] = []
    try:
        cases = tally.check.cases(lab)
    except Skipped as skipped:
        tally.skipped[str(skipped)] += 1
    except Found as found:
        _count(tally, lab, 0, Tried("the scene", str(found)))
    except Exception:  # noqa: BLE001 - the check itself is at fault; the others continue
        _break(tally, lab, 0)
    tally.seconds += time.monotonic() - started
    wanted = [(number, given) for number, given in enumerate(cases) if only is None or only == number]
    return [pool.submit(_try, lab, number, given, tally) for number, given in wanted]


def _try(lab: Lab, number: int, given: Any, tally: Tally) -> None:
    check, started = tally.check, time.monotonic()
    folder = lab.root / f"{check.name}-{number}"
    folder.mkdir()
    trial = Trial(number, given, random.Random(f"{lab.seed} {check.name} {number}"), folder, lab, tally.figures)
    try:
        for tried in check.attempt(trial):
            _count(tally, lab, number, tried)
    except Skipped as skipped:
        with lab.lock:
            tally.skipped[str(skipped)] += 1
    except Found as found:
        _count(tally, lab, number, Tried(f"case {given}", str(found)))
    except Exception:  # noqa: BLE001
        _break(tally, lab, number)
    with lab.lock:
        tally.seconds += time.monotonic() - started
        is_good = number not in {bad for bad, _ in (*tally.failures, *tally.broken)}
    if is_good:
        shutil.rmtree(folder)


def _break(tally: Tally, lab: Lab, number: int) -> None:
    with lab.lock:
        tally.broken.append((number, traceback.format_exc()))
    _tell(lab, f"BROKEN {tally.check.name}, case {number}: {traceback.format_exc()}")


def _count(tally: Tally, lab: Lab, number: int, tried: Tried) -> None:
    with lab.lock:
        tally.tried += 1
        if tried.problem:
            tally.failures.append((number, tried))
    if tried.problem:
        _tell(lab, f"FAILED {tally.check.name}, case {number}: {tried.what}: {tried.problem}")


def _tell(lab: Lab, line: str) -> None:
    print(line, file=lab.says, flush=True)
