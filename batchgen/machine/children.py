"""Python processes that are started from here do not import from the working directory.

Python looks there first, and a folder that was downloaded may hold a `socket.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager

SAFE_PATH = "PYTHONSAFEPATH"  # as Python's own option -P, for a process and all that it starts
ROOT_FOLDER = os.path.abspath(os.sep)  # noqa: PTH100 - only its administrator puts files into it


@contextmanager
def safe_children() -> Iterator[None]:
    """Processes that start in here keep out of the working directory, and so does what they start."""
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
    """The same for a library that tells its processes on other machines to import from where this one is."""
    with safe_children(), chdir(ROOT_FOLDER):
        yield
