"""A line for the case that this process ends without one: libraries in C++ end it at once, and nothing here runs then.

A small process waits beside this one, and writes the line when this one is gone without having withdrawn it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import DEVNULL, PIPE, Popen

_WAIT = "import os, sys; os.read(0, 1) or os.write(2, os.fsencode(sys.argv[1]))"
_waiting: list[Popen[bytes]] = []


@contextmanager
def last_words(text: str) -> Iterator[None]:
    """Write a text to standard error if this process ends inside, whatever ended it."""
    command = [sys.executable, "-I", "-S", "-c", _WAIT, text]
    _waiting.append(process := Popen(command, stdin=PIPE, stdout=DEVNULL, start_new_session=True))
    try:
        yield
    finally:
        withdraw_last_words()
        process.wait()


def withdraw_last_words() -> None:
    """Write nothing at the end of this process. May be called by handlers of signals."""
    while _waiting:
        with suppress(OSError), _waiting.pop().stdin as pipe:  # type: ignore[union-attr]
            pipe.write(b"\n")
