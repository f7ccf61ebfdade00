"""Share the rows of a long loop among threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from batchgen.engines.compiled.compiling import Kernel

WORTH_A_THREAD = 250_000  # nanoseconds of work that a thread must get: waking it takes some 50,000


def in_parts(loop: Kernel, num_rows: int, row_cost: float, given: tuple[Any, ...], sizes: tuple[Any, ...]) -> None:
    """Call `loop(*given, first, last, *sizes)` for all rows, in as many of torch's number of threads as are worth it.

    `row_cost` is the time of a row in nanoseconds, roughly.
    """
    parts = min(torch.get_num_threads(), num_rows, int(num_rows * row_cost / WORTH_A_THREAD))
    if parts < 2:
        loop(*given, 0, num_rows, *sizes)
        return
    own, *others = pairwise(num_rows * part // parts for part in range(parts + 1))
    running = [_threads(parts - 1, os.getpid()).submit(loop, *given, *rows, *sizes) for rows in others]
    loop(*given, *own, *sizes)
    for each in running:
        each.result()


@lru_cache(1)
def _threads(number: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(number, "batchgen-loops")
