"""Prevents Python child processes from importing modules from the working directory.

Python looks there first, and a downloaded folder may contain a `socket.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager

SAFE_PATH = "PYTHONSAFEPATH"  # like Python's option -P, for a process and all its children
ROOT_FOLDER = os.path.abspath(os.sep)  # noqa: PTH100 - only its administrator puts files into it


@contextmanager
def safe_children() -> Iterator[None]:
    """Start processes inside with imports from the working directory disabled, for them and their children."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


@contextmanager
def safe_cluster() -> Iterator[None]:
    """Like `safe_children`, for libraries that make processes on other machines import from this working directory."""
    with safe_children(), chdir(ROOT_FOLDER):
        yield
