"""Compile loops to C functions that take addresses, and the arithmetic that they share.

bfloat16 is read as the upper half of a float32 and written with one rounding; all sums are in float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, config, njit, types
from numba.extending import intrinsic, overload

from batchgen.engines.compiled.support import cache_folder

FLOAT, BITS = types.CPointer(types.float32), types.CPointer(types.uint16)
INTEGERS, INTEGER, NUMBER = types.CPointer(types.int64), types.int64, types.float32
STORED = {"float32": FLOAT, "bfloat16": BITS}
NUMPY = {"float32": np.float32, "bfloat16": np.uint16}
# Sums may be reordered, as the compiler chooses once and for all; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

Kernel = Callable[..., None]
f4, u4, i4 = np.float32, np.uint32, np.int32
inlined = njit(error_model="numpy", fastmath=FASTMATH, forceinline=True)


def compiled(*arguments: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Compile a function of arguments of these types to a C function, or load it from the cache folder."""

    def build(function: Callable[..., None]) -> Kernel:
        config.CACHE_DIR = cache_folder() or ""
        keeps = bool(config.CACHE_DIR)
        made = cfunc(types.void(*arguments), fastmath=FASTMATH, error_model="numpy", cache=keeps)(function)
        kinds: dict[Any, Any] = {INTEGER: ctypes.c_int64, NUMBER: ctypes.c_float}
        call: Any = ctypes.CFUNCTYPE(None, *(kinds.get(kind, ctypes.c_void_p) for kind in arguments))(made.address)
        call.made = made  # keeps the code in memory
        return call  # type: ignore[no-any-return]

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
    near = (bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16)
    return np.uint16(near if x == x else u4(0x7FC0))


@inlined
def exp(x):
    """Return exp(x), as a power of two, with a relative error below 3e-7; 0 below -87.3, and at most 2e38."""
    power = min(max(x * f4(1.4426950408889634), f4(-126)), f4(127))
    nearest = i4(power + f4(127.5))  # plus 127, the exponent's bias, so that truncation rounds down
    part = power - f4(nearest - i4(127))
    e = f4(1.535336188319500e-4)  # Cephes' polynomial of 2 ** part
    e = e * part + f4(1.339887440266574e-3)
    e = e * part + f4(9.618437357674640e-3)
    e = e * part + f4(5.550332471162809e-2)
    e = e * part + f4(2.402264791363012e-1)
    e = e * part + f4(6.931472028550421e-1)
    e = e * part + f4(1)
    value = e * u4(nearest << i4(23)).view(np.float32)
    value = value if power > f4(-126) else f4(0)
    return value if x == x else x


@inlined
def sigmoid(x):
    return f4(1) / (f4(1) + exp(-x))


@inlined
def tanh(x):
    return f4(2) * sigmoid(f4(2) * x) - f4(1)


@intrinsic
def at(_, address):
    """Return an address as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate
