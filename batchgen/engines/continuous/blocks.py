"""Memory for keys and values: zeroed memory that the system allocates when it is first touched, in large pages."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch


def zeros(shape: tuple[int, ...], like: torch.Tensor, num_spare: int = 0) -> torch.Tensor:
    """Return zeros of `like`'s dtype and device, of which the last `num_spare` along the first dimension may stay so.

    On a CPU the system zeroes the memory when it is first touched, in large pages. torch fills its own zeros at once,
    one small page at a time, which took a tenth of a prefill. The spare part gets small pages: a large one at its
    border would take up to 2 MiB of it. Raises `MemoryError`.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not num_bytes:
        return like.new_zeros(shape)
    try:
        # The default, shared memory, has no large pages.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        block = mmap.mmap(-1, num_bytes, **private)
    except OSError as error:
        raise MemoryError(f"cannot allocate {num_bytes} bytes for the KV cache: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        needed_bytes = num_bytes - num_bytes // shape[0] * num_spare
        border = -(-needed_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with suppress(OSError):  # a kernel without large pages
            block.madvise(mmap.MADV_HUGEPAGE, 0, min(border, num_bytes))
            if border < num_bytes:
                block.madvise(mmap.MADV_NOHUGEPAGE, border)
    return torch.frombuffer(block, dtype=like.dtype).view(shape)


@torch.inference_mode()
def touch_block(block: torch.Tensor) -> None:
    """Write a zero into each of the system's pages of a block of zeros, so that they take memory now."""
    block.view(-1)[:: mmap.PAGESIZE // block.element_size()].zero_()
