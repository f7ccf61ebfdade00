"""Compile loops to C functions that take addresses, and the arithmetic that they share.

bfloat16 is read as the upper half of a float32 and written with one rounding; all sums are in float32. Numba computes
with integers of 32 bits in 64, so results are converted back at once: vectors then have twice as many of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, config, njit, types
from numba.extending import intrinsic, overload

from batchgen.engines.compiled.support import cache_folder, note_compiled
from batchgen.engines.compiled.threads import Loop, Slot
from batchgen.engines.compiled.writer import Writer

FLOAT, BITS = types.CPointer(types.float32), types.CPointer(types.uint16)
INTEGERS, INTEGER, NUMBER = types.CPointer(types.int64), types.int64, types.float32
STORED = {"float32": FLOAT, "bfloat16": BITS}
NUMPY = {"float32": np.float32, "bfloat16": np.uint16}
# Sums may be reordered, as the compiler chooses once and for all; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

LINE = 64  # bytes of a cache line
f4, u4, i4 = np.float32, np.uint32, np.int32
WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # nobody calls an inlined function from outside
inlined = njit(error_model="numpy", fastmath=FASTMATH, forceinline=True, **WRAPPERS)


def compiled(*arguments: Any) -> Callable[[Callable[..., None]], Loop]:
    """Compile a loop from row `first` to `last`, with further arguments of these types, or load it from its folder."""

    def build(function: Callable[..., None]) -> Loop:
        config.CACHE_DIR = cache_folder() or ""
        keeps = bool(config.CACHE_DIR)
        signature = types.void(INTEGER, INTEGER, *arguments)
        made = cfunc(signature, fastmath=FASTMATH, error_model="numpy", cache=keeps)(function)
        if not made.cache_hits:
            note_compiled(function.__qualname__)
        kinds: dict[Any, Slot] = {INTEGER: ctypes.c_int64, NUMBER: ctypes.c_double}
        return Loop(made, [kinds.get(kind, ctypes.c_void_p) for kind in arguments])

    return build


def wide(x: Any) -> Any:
    """Return a stored number as float32."""


def stored(x: Any, like: Any) -> Any:
    """Return a float32 as the array `like` stores it."""


@overload(wide)
def _wide(x):
    return (lambda x: u4(u4(x) << u4(16)).view(np.float32)) if x == types.uint16 else (lambda x: x)


@overload(stored)
def _stored(x, like):
    return (lambda x, like: rounded(x)) if like.dtype == types.uint16 else (lambda x, like: x)


@inlined
def rounded(x):
    """Round to bfloat16, to the nearest or even; NaN stays NaN."""
    bits = f4(x).view(np.uint32)
    near = u4(bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16)
    return np.uint16(near if x == x else u4(0x7FC0))


@inlined
def exp(x):
    """Return exp(x), as a power of two, with a relative error below 3e-7; 0 below -87.3, and at most 2e38."""
    power = min(max(x * f4(1.4426950408889634), f4(-126)), f4(127))
    nearest = i4(power + f4(127.5))  # plus 127, the exponent's bias, so that truncation rounds down
    part = power - f4(i4(nearest - i4(127)))
    e = f4(1.535336188319500e-4)  # Cephes' polynomial of 2 ** part
    e = e * part + f4(1.339887440266574e-3)
    e = e * part + f4(9.618437357674640e-3)
    e = e * part + f4(5.550332471162809e-2)
    e = e * part + f4(2.402264791363012e-1)
    e = e * part + f4(6.931472028550421e-1)
    e = e * part + f4(1)
    value = e * u4(u4(nearest) << u4(23)).view(np.float32)
    value = value if power > f4(-126) else f4(0)
    return value if x == x else x


@inlined
def highest(numbers, least):
    """Return the highest number, at least `least`; NaN may be missed.

    Compares bits as integers, for which the compiler uses vectors: a negative float's are turned over.
    """
    peak = turned(f4(least).view(np.int32))
    for i in range(len(numbers)):
        peak = max(peak, turned(f4(numbers[i]).view(np.int32)))
    return number_of(turned(peak))


@inlined
def number_of(bits):
    return i4(bits).view(np.float32)


@inlined
def turned(bits):
    return i4(bits ^ i4(i4(bits >> i4(31)) & i4(0x7FFFFFFF)))


@inlined
def sigmoid(x):
    return f4(1) / (f4(1) + exp(-x))


@inlined
def gelu(x):
    """Return the approximation with tanh (arXiv:1606.08415): twice a sigmoid is one more than tanh of half as much."""
    return x * sigmoid(f4(1.5957691216057308) * (x + f4(0.044715) * x * x * x))


@inlined
def tanh(x):
    return f4(2) * sigmoid(f4(2) * x) - f4(1)


@intrinsic
def at(_, address):
    """Return an address as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


@intrinsic
def fetch(_, address):
    """Ask for the cache line at an address, which may be any number, before it is read."""

    def generate(context, builder, signature, arguments):
        Writer(builder).fetch(*arguments)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@inlined
def fetch_all(address, size):
    """Ask for all cache lines of `size` bytes."""
    for line in range(0, size, LINE):
        fetch(address + line)
