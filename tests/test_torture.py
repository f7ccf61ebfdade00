"""A little of `make torture`: the same checks on a few cases, so that they stay runnable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, limits and terminals are POSIX")

if sys.platform != "win32":
    from torture.__main__ import CHECKS
    from torture.lab import Lab, perform

    BY_NAME = {check.name: check for check in CHECKS}

# Of the cases of a check, the share that takes a few seconds.
SHARES = {
    "fault-ulimit": 0.1, "signal-fake": 0.03, "race-start": 0.04, "race-end": 0.05, "stale": 0.07, "malformed": 0.02,
    "terminal-fake": 0.015, "folder-modules": 0.25, "folder-settings": 1.0,
}  # fmt: skip
PATIENCE = 100.0  # times the limits of `make torture`, which wants a machine that has nothing else to do
SLOW = {"kill-calls": 0.0025, "fault-calls": 0.005, "pipe": 0.02}


@pytest.mark.parametrize("name", [*SHARES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_some_cases_hold(tmp_path: Path, name: str) -> None:
    tally = perform(BY_NAME[name], Lab(tmp_path, share=(SHARES | SLOW)[name], patience=PATIENCE))
    if tally.skipped and not tally.tried:
        pytest.skip(", ".join(tally.skipped))
    assert tally.tried
    assert tally.failures == []
