"""Kernels that give a row the same bits whatever other rows run with it, where torch's own do not always.

torch computes element-wise functions in vectors, and the rest at the end of each thread's part one number at a time,
which rounds differently for some functions. Here every part is whole vectors. Pure functions of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

LOG2_E = math.log2(math.e)
VECTORS_BYTES = 128  # torch's loops process two vectors of at most 64 bytes at a time
GRAIN, GELU_GRAIN = 32768, 0x6000  # elements that torch leaves to one thread; above the second all threads share a gelu
SMALL = 4096  # multiplications; torch uses another kernel for 16-bit products this small


@lru_cache(4096)
def whole_size(num_elements: int, element_bytes: int, num_threads: int) -> int:
    """Return the least number of elements, `num_elements` or more, that torch splits among threads at whole vectors.

    >>> whole_size(64, 4, 2), whole_size(65, 4, 2), whole_size(32800, 4, 2)
    (64, 96, 32832)
    """
    whole = VECTORS_BYTES // element_bytes
    size = num_elements
    while size % (part := whole * _num_parts(size, num_threads)):
        size += part - size % part
    return size


def _num_parts(size: int, num_threads: int) -> int:
    """Return what torch may divide `size` elements by."""
    return math.lcm(min(num_threads, -(-size // GRAIN)), num_threads if size > GELU_GRAIN else 1)


def by_element(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply an element-wise function to a tensor, in whole vectors on a CPU."""
    x = x.contiguous()
    size = whole_size(x.numel(), x.element_size(), torch.get_num_threads()) if x.device.type == "cpu" else x.numel()
    if size == x.numel():
        return function(x)
    padded = x.new_zeros(size)
    padded[: x.numel()] = x.reshape(-1)
    return function(padded)[: x.numel()].view(x.shape)


def exp_(x: torch.Tensor, scaling: float = 1.0) -> torch.Tensor:
    """Compute exp(x * scaling) in place, as a power of two.

    torch's own exp is MKL's, which is eight times slower where the result reaches 0.
    """
    return by_element(torch.exp2_, x.mul_(scaling * LOG2_E))


def bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return products `[N, M, K] x [N, K, O]`, on the same kernel however small N is."""
    num_products = left.numel() * right.shape[2]
    if num_products > SMALL or left.dtype == torch.float32 or left.device.type != "cpu":
        return torch.bmm(left, right)
    times = SMALL // num_products + 1
    return torch.bmm(left.repeat(times, 1, 1), right.repeat(times, 1, 1))[: len(left)]


def bmm_of_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Like `bmm`, also where N may be 1: torch multiplies a single product as matrices, on another kernel."""
    if len(left) == 1 and left.device.type == "cpu":
        return bmm(left.repeat(2, 1, 1), right.repeat(2, 1, 1))[:1]
    return bmm(left, right)
