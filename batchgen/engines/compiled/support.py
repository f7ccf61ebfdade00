"""Whether Numba is installed, and the folder that keeps compiled loops."""

from __future__ import annotations

import os
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from batchgen.machine.kept import kept_path

# Parameters. Importing Numba takes half a second, which the rows of a smaller model rarely win back.
LEAST_PARAMETERS = 50_000_000
OTHER_PROCESSORS = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX")  # what Numba compiles for
_compiled: list[str] = []  # the names of loops that this process compiled


@cache
def why_not_compiled() -> str | None:
    """Return why loops cannot be compiled here; None if they can. Compiles nothing."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):  # Numba's own variables, as those below
        return "NUMBA_DISABLE_JIT is set"
    for name in OTHER_PROCESSORS:
        if os.environ.get(name):  # it may not have the instructions of `tile`, and LLVM would abort
            return f"{name} is set"
    if not compiler():
        return "Numba is not installed: pip install numba"
    return None


@cache
def compiler() -> str:
    """Return what the bits of compiled loops depend on: Numba's version and their source; empty without Numba."""
    try:
        return f"numba {version('numba')}, llvmlite {version('llvmlite')}, loops {_digest_of_loops()}"
    except PackageNotFoundError:
        return ""


@cache
def _digest_of_loops() -> str:
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return blake2b(sources, digest_size=8).hexdigest()


def num_compiled() -> int:
    """Return how many loops this process has compiled itself, which takes some 100 MiB; the others it loaded."""
    return len(_compiled)


def note_compiled(name: str) -> None:
    """Count a loop as compiled by this process."""
    _compiled.append(name)


@cache
def cache_folder() -> str | None:
    """Return the folder that keeps the loops of this source code; None if it cannot be trusted or written to.

    Numba loads code from it, so nobody else may write to it.
    """
    folder = kept_path(f"compiled-{_digest_of_loops()}").with_suffix("")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    is_own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
    return str(folder) if is_own and os.access(folder, os.W_OK | os.X_OK) else None
