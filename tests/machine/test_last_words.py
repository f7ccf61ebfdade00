"""The line of a process that ends without a chance to write one."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

START = """
import os, signal
from batchgen.machine.last_words import last_words
with last_words("gone\\n"):
    {}
"""


def stderr_of(body: str) -> str:
    done = subprocess.run([sys.executable, "-c", START.format(body)], capture_output=True, text=True, check=False)
    return done.stderr


@pytest.mark.parametrize("end", ["os._exit(1)", "os.abort()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_is_ended_says_it(end: str) -> None:
    assert stderr_of(end) == "gone\n"


def test_a_process_that_says_why_itself_does_not() -> None:
    assert stderr_of("pass") == ""
    assert stderr_of("raise SystemExit('my own line')") == "my own line\n"


def test_the_second_signal_is_the_user_s_own_doing() -> None:
    second = f"""
    from batchgen.cli.signals import Interrupts
    with Interrupts():
        for _ in range(2):
            try:
                os.kill(os.getpid(), {int(signal.SIGINT)})
            except KeyboardInterrupt:
                pass
"""
    assert stderr_of(second) == ""
