"""Torture tests itself: a check with a broken set-up is not a finding, and a check that finds something reports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO

from torture.lab import Check, Found, Lab, Tally, Trial, Tried, perform


def breaks(trial: Trial) -> Iterator[Tried]:
    assert trial.number < 0, "the set-up of this check is broken"
    yield Tried("nothing")


def finds(trial: Trial) -> Iterator[Tried]:
    yield Tried("something", "does not hold")


def finds_early(trial: Trial) -> Iterator[Tried]:
    raise Found("the scene does not hold")
    yield Tried("nothing")


# What runs, and how many failures and broken cases it must count.
CASES: list[tuple[str, Callable[[Trial], Iterator[Tried]], tuple[int, int]]] = [
    ("a broken set-up is no finding", breaks, (0, 1)),
    ("what does not hold is one", finds, (1, 0)),
    ("in a scene too", finds_early, (1, 0)),
]


def judged(trial: Trial) -> Iterator[Tried]:
    what, attempt, wanted = trial.given
    root = trial.folder / "inner"
    root.mkdir()
    tally: Tally = perform(Check("inner", "", lambda lab: [None], attempt), Lab(root, says=StringIO()))
    found = len(tally.failures), len(tally.broken)
    yield Tried(what, None if found == wanted else f"{found[0]} failures and {found[1]} broken cases")


CHECKS = [Check("itself", "broken checks are told from findings", lambda lab: CASES, judged)]
