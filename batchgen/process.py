"""What the command sets for its own process before torch is there: how threads wait, where large tensors live.

A library has no business with either; a notebook that wants them calls `settle`.
"""

from __future__ import annotations

import ctypes
import os
import platform

# Loops that an OpenMP thread spins while it waits for the others (GNU's runtime, which torch uses on Linux; about
# 300,000 by default). Where another program takes a core, long spinning slows a step tenfold and more; see
# docs/decisions.md.
SPIN_COUNT = "10000"
# glibc raises its threshold for mmap to 32 MiB as a program frees large blocks; the tensors below it then share a heap
# with holes, and the process holds up to 1.5 times the live tensors. Fixed here, so that large tensors go back to the
# system when they are freed (docs/decisions.md). mallopt(3) names the two options.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 256 * 2**20, 2**20


def settle() -> None:
    """Sets both, unless the user's environment has."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        allocator.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
