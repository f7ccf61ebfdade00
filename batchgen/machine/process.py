"""What the command sets for its own process before torch is imported: threads, the heap, Python's garbage collector.

A library must not change these; a notebook that wants them calls `settle`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform

from batchgen.errors import ModelError

# How often an OpenMP thread spins while waiting for the others (GNU's runtime, which torch uses on Linux; about
# 300,000 by default). If another program uses a core, long spinning slows a step tenfold and more; see
# docs/decisions.md.
SPIN_COUNT = "10000"
LEAST_ADDRESS_SPACE = 576 * 2**20  # bytes; with 600,000 KiB, torch's CPU build loads on Linux
# Larger blocks come from the system and return to it when freed; smaller ones share a heap, which has gaps.
# glibc raises this threshold to 32 MiB by itself: fast, but the process then holds up to 1.5 times the live tensors.
# If memory is short the threshold stays low instead, so that use matches the prediction (docs/decisions.md has both).
SHORT_OF_MEMORY, PLENTY_OF_MEMORY = 256 * 2**10, 32 * 2**20
TRIM_BYTES = 256 * 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)
# oneDNN keeps a kernel for every shape it has seen, 0.2 MB each, and torch's layer above it a prepared call with its
# scratch memory, another 0.3 MB; slots that refill have many shapes. A new kernel costs a millisecond.
KERNELS_KEPT, CALLS_KEPT = "64", "16"
# How many new objects make Python search for cycles, 700 by default. Importing torch and transformers makes a
# million objects and hardly any cycles; the search took a sixth of the time from the command to the first row.
GARBAGE_AFTER = 50_000


def settle() -> None:
    """Set all of these, unless the user's environment already does."""
    gc.set_threshold(GARBAGE_AFTER)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_KEPT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", CALLS_KEPT)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    heed_thread_limit()
    if _has_our_heap():
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        if _address_space_is_limited():  # each thread's own heap would take 64 MiB of it
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
        reuse_blocks(False)


def heed_thread_limit() -> None:
    """Lower OMP_NUM_THREADS to OMP_THREAD_LIMIT.

    torch does not know the limit: if OpenMP gives fewer threads than it asks for, its products in bfloat16 have NaN.
    """
    limit, own = (os.environ.get(name, "") for name in ("OMP_THREAD_LIMIT", "OMP_NUM_THREADS"))
    wanted = int(own) if own.isdecimal() else num_cpus()
    if limit.isdecimal() and 0 < int(limit) < wanted:
        os.environ["OMP_NUM_THREADS"] = limit


def num_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reuse_blocks(is_plenty: bool) -> None:
    """Keep freed blocks for reuse if memory `is_plenty`, which is faster; otherwise return them to the system."""
    if _has_our_heap():
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, PLENTY_OF_MEMORY if is_plenty else SHORT_OF_MEMORY)
        if not is_plenty:
            release_heap()


def release_heap() -> None:
    """Return freed small blocks to the system; glibc would keep them for reuse."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def untouched_memory_is_free() -> bool:
    """Whether a block takes memory only when touched, and address space is unlimited: on Unix without `ulimit -v`."""
    return os.name == "posix" and not _address_space_is_limited()


def _has_our_heap() -> bool:
    return _is_glibc() and "MALLOC_MMAP_THRESHOLD_" not in os.environ


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _address_space_is_limited() -> bool:
    return _limit("RLIMIT_AS") is not None


def is_file_size_limited() -> bool:
    """Whether `ulimit -f` is set."""
    return _limit("RLIMIT_FSIZE") is not None


def require_address_space() -> None:
    """Raise `ModelError` if `ulimit -v` is too small to load torch, which would abort the process without a word."""
    limit = _limit("RLIMIT_AS")
    if limit is not None and limit < LEAST_ADDRESS_SPACE:
        mib, least = limit // 2**20, LEAST_ADDRESS_SPACE // 2**20
        raise ModelError(f"{mib} MiB of address space (ulimit -v) are too few to load torch: allow {least}")


def _limit(name: str) -> int | None:
    """A limit of this process (getrlimit(2)), in bytes; None if there is none."""
    if os.name != "posix":
        return None
    import resource

    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft
