"""Run a loop on torch's own threads, those of OpenMP.

Other threads would take some 50 µs to wake, and wait for torch's, which spin for a while after each operation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from llvmlite import binding

WORTH_SHARING = 10_000  # nanoseconds of work: to begin and end together takes two or three thousand

Slot = type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double]
TYPES: dict[Slot, str] = {ctypes.c_void_p: "ptr", ctypes.c_int64: "i64", ctypes.c_double: "double"}  # 8 bytes each


class Loop:
    """A compiled loop `f(first, last, …)` over rows."""

    def __init__(self, made: Any, arguments: Sequence[Slot]) -> None:
        """Take Numba's C function, and the types of what follows `first` and `last`; doubles become float32."""
        self._made = made  # keeps the code in memory
        kinds = [ctypes.c_float if kind is ctypes.c_double else kind for kind in arguments]
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, *kinds)(made.address)
        fields: list[tuple[str, Slot]] = [("rows", ctypes.c_int64)]
        fields += [(f"argument{place}", kind) for place, kind in enumerate(arguments)]
        self._work = type("Work", (ctypes.Structure,), {"_fields_": fields})
        self._share = _Share(made.address, arguments)

    def __call__(self, num_rows: int, row_cost: float, *arguments: Any) -> None:
        """Run for all rows. `row_cost` is the time of a row in nanoseconds, roughly."""
        threads = torch.get_num_threads()
        if threads < 2 or num_rows < 2 or num_rows * row_cost < WORTH_SHARING or not (library := openmp()):
            self._alone(0, num_rows, *arguments)
            return
        work = self._work(num_rows, *arguments)
        # As many threads as torch's operations have: OpenMP would end the others and start them anew.
        library.GOMP_parallel(self._share.address, ctypes.byref(work), threads, 0)


@cache
def openmp() -> ctypes.CDLL | None:
    """Return the library of torch's threads; None if it is not there, and loops run in one thread."""
    with suppress(OSError, TypeError, AttributeError):  # TypeError: on Windows
        library = ctypes.CDLL(None)
        library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        library.GOMP_parallel.restype = None
        return library if library.omp_get_thread_num and library.omp_get_num_threads else None
    return None


class _Share:
    """A C function that is given a loop's `Work` and runs one thread's share of the rows."""

    def __init__(self, loop: int, arguments: Sequence[Slot]) -> None:
        library = openmp()
        names = ("omp_get_thread_num", "omp_get_num_threads") if library else ()
        number, count = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names] or (0, 0)
        engine = binding.create_mcjit_compiler(
            binding.parse_assembly(_source(loop, number, count, [TYPES[kind] for kind in arguments])),
            binding.Target.from_default_triple().create_target_machine(),
        )
        engine.finalize_object()
        self._engine = engine  # keeps the code in memory
        self.address = engine.get_function_address("share")


def _source(loop: int, number: int, count: int, types: list[str]) -> str:
    """Return the function in LLVM's language.

    `loop`, `number` and `count` are addresses: of the loop, and of OpenMP's functions that return a thread's number and
    how many threads there are, which may be fewer than were asked for. Thread t of P computes the rows from N t / P to
    N (t + 1) / P.
    """
    lines, given = [], ["i64 %first", "i64 %last"]
    for place, kind in enumerate(types):
        lines += [
            f"%at{place} = getelementptr i64, ptr %work, i64 {place + 1}",
            f"%argument{place} = load {kind}, ptr %at{place}",
        ]
        if kind == "double":
            lines.append(f"%single{place} = fptrunc double %argument{place} to float")
            given.append(f"float %single{place}")
        else:
            given.append(f"{kind} %argument{place}")
    load = "\n".join(lines)
    return f"""
define void @share(ptr %work) {{
  %rows = load i64, ptr %work
  %number = call i32 inttoptr (i64 {number} to ptr)()
  %count = call i32 inttoptr (i64 {count} to ptr)()
  %part = zext i32 %number to i64
  %parts = zext i32 %count to i64
  %next = add i64 %part, 1
  %before = mul i64 %rows, %part
  %first = udiv i64 %before, %parts
  %through = mul i64 %rows, %next
  %last = udiv i64 %through, %parts
  {load}
  call void inttoptr (i64 {loop} to ptr)({", ".join(given)})
  ret void
}}
"""
