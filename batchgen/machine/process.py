"""What the command sets for its own process before torch is there: threads, the heap, Python's garbage collector.

A library has no business with them; a notebook that wants them calls `settle`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform

# Loops that an OpenMP thread spins while it waits for the others (GNU's runtime, which torch uses on Linux; about
# 300,000 by default). Where another program takes a core, long spinning slows a step tenfold and more; see
# docs/decisions.md.
SPIN_COUNT = "10000"
# Larger blocks come from the system and go back to it when they are freed; smaller ones share a heap, which has holes.
# glibc moves this threshold up to 32 MiB by itself: quick, but the process then holds up to 1.5 times the live tensors.
# Where memory is short it stays low instead, and what is held is what was predicted (docs/decisions.md has both).
SHORT_OF_MEMORY, PLENTY_OF_MEMORY = 256 * 2**10, 32 * 2**20
TRIM_BYTES = 256 * 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)
# oneDNN keeps a kernel for every shape it has met, 0.2 MB each, and torch's layer above it a ready-made call with its
# scratch, another 0.3 MB; with slots that refill there are many shapes. A new one costs a millisecond.
KERNELS_KEPT, CALLS_KEPT = "64", "16"
# New objects that have Python look for cycles among all, 700 by default. Importing torch and transformers makes a
# million objects and hardly a cycle; looking took a sixth of the time from the command to the first row.
GARBAGE_AFTER = 50_000


def settle() -> None:
    """Sets all of it, unless the user's environment has."""
    gc.set_threshold(GARBAGE_AFTER)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_KEPT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", CALLS_KEPT)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if _has_our_heap():
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        if _address_space_is_limited():  # every thread's own heap would take 64 MiB of it
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
        reuse_blocks(False)


def reuse_blocks(is_plenty: bool) -> None:
    """Keeps freed blocks for the next ones where memory `is_plenty`, which is quicker; else gives them back."""
    if _has_our_heap():
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, PLENTY_OF_MEMORY if is_plenty else SHORT_OF_MEMORY)
        if not is_plenty:
            release_heap()


def release_heap() -> None:
    """Gives freed small blocks back to the system, which glibc keeps for the next ones."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def untouched_memory_is_free() -> bool:
    """Whether a block takes memory only as it is touched, and addresses are plenty: a Unix without `ulimit -v`."""
    return os.name == "posix" and not _address_space_is_limited()


def _has_our_heap() -> bool:
    return _is_glibc() and "MALLOC_MMAP_THRESHOLD_" not in os.environ


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _address_space_is_limited() -> bool:
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
