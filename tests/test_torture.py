"""A few cases of each check of `make torture`, so that the checks stay runnable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, limits and terminals are POSIX")

if sys.platform != "win32":
    from torture.__main__ import CHECKS
    from torture.answers import expected, wrong
    from torture.lab import Lab, perform
    from torture.mutants import MUTANTS, ROOT, Mutant
    from torture.order import Call, disorder

    BY_NAME = {check.name: check for check in CHECKS}

# The share of a check's cases that takes a few seconds.
SHARES = {
    "fault-ulimit": 0.05, "signal-fake": 0.015, "race-start": 0.02, "race-end": 0.025, "stale": 0.035,
    "malformed": 0.02, "itself": 1.0, "right": 0.2, "order": 0.25, "guard-planted": 1.0,
    "guard-locked": 1.0, "guard-whose-id": 1.0, "terminal-fake": 0.015, "folder-settings": 1.0,
}  # fmt: skip
PATIENCE = 100.0  # times the limits of `make torture`, which needs an otherwise idle machine
SLOW = {"readers": 0.17, "kill-calls": 0.0025, "fault-calls": 0.005, "pipe": 0.02, "folder-modules": 0.25}


@pytest.mark.parametrize("name", [*SHARES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_some_cases_hold(tmp_path: Path, name: str) -> None:
    tally = perform(BY_NAME[name], Lab(tmp_path, share=(SHARES | SLOW)[name], patience=PATIENCE))
    if tally.skipped and not tally.tried:
        pytest.skip(", ".join(tally.skipped))
    assert tally.tried
    assert (tally.failures, tally.broken) == ([], [])


# Mutants: `make torture-mutants` tries them, which takes minutes.


def test_there_are_enough_mutants_with_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 15


@pytest.mark.parametrize("mutant", MUTANTS if sys.platform != "win32" else [], ids=lambda mutant: mutant.name)
def test_a_mutant_still_has_its_place_and_its_checks(mutant: Mutant) -> None:
    assert mutant.old in (ROOT / mutant.file).read_text()
    assert mutant.old != mutant.new
    assert set(mutant.checks) <= set(BY_NAME)


def test_rows_that_are_lost_twice_or_changed_are_told_apart() -> None:
    wanted = list(expected([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "x"}, {"prompt": "y"}]))
    assert wanted[0][4] != wanted[1][4]  # the same id, but different answers
    assert wrong(wanted, wanted) is None
    assert "lost are [(1, 0)]" in str(wrong([wanted[0], wanted[2]], wanted))
    assert "must be" in str(wrong([wanted[0], wanted[0], wanted[2]], wanted))
    assert "2 did" not in str(wrong([*wanted, wanted[0]], wanted))


STORE = "out.run.db"
GOOD = [
    *([Call("write", f"{STORE}-wal"), Call("sync", f"{STORE}-wal")] * 4),
    Call("write", ".tmp"), Call("sync", ".tmp"), Call("name", ".tmp", "out"), Call("sync", "folder"),
    Call("unlink", f"{STORE}-wal"), Call("unlink", STORE),
]  # fmt: skip


def test_calls_in_order_are_well() -> None:
    assert disorder(GOOD, "out", "folder") is None


@pytest.mark.parametrize(("place", "says"), [(9, "synced at None"), (11, "not synced"), (1, "was synced 3 times")])
def test_a_call_that_is_missing_is_seen(place: int, says: str) -> None:
    assert says in str(disorder([*GOOD[:place], *GOOD[place + 1 :]], "out", "folder"))


def test_a_store_that_goes_early_is_seen() -> None:
    assert "the store went" in str(disorder([*GOOD[:11], GOOD[12], GOOD[11], *GOOD[13:]], "out", "folder"))
