"""The lock on a store's file: one writer at a time, with concurrent readers.

It uses `flock`, which does not interfere with the locks that SQLite takes on the same file. The system releases it when
its process ends, for whatever reason.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from batchgen.errors import InUseError
from batchgen.machine.file_systems import is_on_network

try:
    import fcntl
except ImportError:  # Windows
    HAS_FLOCK = False
else:
    HAS_FLOCK = True

IN_USE = "is in use by another run: wait for it, or name another output"
TRY_AGAIN_S = 0.02
# Stores that this process writes. Opening and closing one of these files again would drop SQLite's own locks on it.
HELD: set[tuple[int, int]] = set()


def allows_readers(path: Path) -> bool:
    """Whether others can read a store while it is written; this needs memory that all of them share."""
    return HAS_FLOCK and not is_on_network(path.parent)


class FileLock:
    """A lock on an existing file, held until it is closed.

    Raises `InUseError` if another process still holds it after `patience_s` seconds, or has removed the file; `OSError`
    if the file cannot be opened.
    """

    def __init__(self, path: Path, patience_s: float) -> None:
        self._descriptor = _open(path)
        try:
            self._take(path, patience_s)
        except BaseException:
            self.close()
            raise

    def _take(self, path: Path, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not _is_taken(self._descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise InUseError(f"{path} {IN_USE}")
            time.sleep(TRY_AGAIN_S)
        if identity(self._descriptor) != identity(path):  # its previous owner has removed it
            raise InUseError(f"{path} {IN_USE}")

    def close(self) -> None:
        """Release the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file. Writes nothing and does not wait."""
    if not HAS_FLOCK:
        return False
    if identity(path) in HELD:
        return True
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return not _is_taken(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)
    return False


def _open(path: Path) -> int:
    if identity(path) in HELD:
        raise InUseError(f"{path} {IN_USE}")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _is_taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def identity(file: Path | int) -> tuple[int, int] | None:
    """Return which file (device, inode) a path or a descriptor refers to; None if it does not exist."""
    try:
        status = os.stat(file)  # noqa: PTH116 - a descriptor too
    except OSError:
        return None
    return status.st_dev, status.st_ino
