"""What a check is made of: cases, each with dice and a folder of its own, and what came of them. Knows no check."""

from __future__ import annotations

import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Skipped(Exception):  # noqa: N818 - not an error
    """What a case needs is not here; the table says so."""


class Found(Exception):  # noqa: N818 - not an error
    """Something did not hold already while the scene of a case was made."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One thing that was tried; `problem` is what did not hold, None where it held."""

    what: str
    problem: str | None = None


class Lab:
    """Where checks work: a folder, the seed of all dice, the share of cases to try, and how busy the machine is.

    On one that has other work too, every limit on time counts `patience` times.
    """

    def __init__(self, root: Path, seed: int = 0, share: float = 1.0, patience: float = 1.0) -> None:
        self.root = root
        self.seed = seed
        self.share = share
        self.patience = patience
        self._made: dict[str, Any] = {}

    def some(self, number: int) -> int:
        """That many cases, or the share of them that was asked for."""
        return max(1, round(number * self.share))

    def pick(self, cases: Sequence[T], number: int) -> Sequence[T]:
        """That many of the cases (or the share asked for), evenly spread; all of them where there are fewer."""
        number = min(len(cases), self.some(number))
        return [cases[i * len(cases) // number] for i in range(number)]

    def once(self, make: Callable[[Path], T]) -> T:
        """What several cases share: made by the first one, in a folder of its own."""
        name = make.__qualname__
        if name not in self._made:
            folder = self.root / f"shared-{name}"
            folder.mkdir()
            self._made[name] = make(folder)
        return self._made[name]  # type: ignore[no-any-return]


@dataclass(slots=True)
class Trial:
    """One case of a check: what it was given, its dice, its folder; and the greatest of each figure measured so far."""

    number: int
    given: Any
    draw: random.Random
    folder: Path
    lab: Lab
    figures: dict[str, float]

    def measure(self, name: str, value: float) -> None:
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
    """What came of a check: the failures with their cases, why cases were skipped, and where the check itself broke.

    What breaks in a check (its own assertions, while it makes its scene) says nothing of batchgen: it is no failure.
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
    """Tries every case, or `only` one; the folders of those that failed are kept."""
    tally = Tally(check)
    started = time.monotonic()
    try:
        cases = check.cases(lab)
    except Skipped as skipped:
        tally.skipped[str(skipped)] += 1
        cases = []
    except Found as found:
        _count(tally, 0, Tried("the scene", str(found)))
        cases = []
    except Exception:  # noqa: BLE001 - the check itself is at fault, and the others go on
        _break(tally, 0)
        cases = []
    for number, given in enumerate(cases):
        if only is None or only == number:
            _try(check, lab, number, given, tally)
    tally.seconds = time.monotonic() - started
    return tally


def _try(check: Check, lab: Lab, number: int, given: Any, tally: Tally) -> None:
    folder = lab.root / f"{check.name}-{number}"
    folder.mkdir()
    trial = Trial(number, given, random.Random(f"{lab.seed} {check.name} {number}"), folder, lab, tally.figures)
    num_bad = len(tally.failures) + len(tally.broken)
    try:
        for tried in check.attempt(trial):
            _count(tally, number, tried)
    except Skipped as skipped:
        tally.skipped[str(skipped)] += 1
    except Found as found:
        _count(tally, number, Tried(f"case {given}", str(found)))
    except Exception:  # noqa: BLE001
        _break(tally, number)
    if len(tally.failures) + len(tally.broken) == num_bad:
        shutil.rmtree(folder)


def _break(tally: Tally, number: int) -> None:
    tally.broken.append((number, traceback.format_exc()))
    print(f"BROKEN {tally.check.name}, case {number}: {traceback.format_exc()}", file=sys.stderr, flush=True)


def _count(tally: Tally, number: int, tried: Tried) -> None:
    tally.tried += 1
    if tried.problem:
        tally.failures.append((number, tried))
        print(f"FAILED {tally.check.name}, case {number}: {tried.what}: {tried.problem}", file=sys.stderr, flush=True)
