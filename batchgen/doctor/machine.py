"""Examine devices, their speed in each dtype, and the memory limits."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.doctor.facts import Accelerator, LinearKernels, Machine, MatmulSpeed, Processor, or_else
from batchgen.machine.limits import Bound, cpu_name, installed_bytes, memory_bounds
from batchgen.machine.speeds import read_gain
from batchgen.model.weights import choose_device

if TYPE_CHECKING:
    import torch

    Measure = Callable[[torch.device, torch.dtype], float]

# These set the number of threads that torch starts with.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# 512 tokens through the first half of GPT-2's feed-forward layer.
ROWS, INNER, COLUMNS = 512, 768, 3072
MEASURE_S = 0.05
# Private functions of torch, which may disappear.
SIXTEEN_BIT = {
    "_is_avx512_bf16_supported": "AVX-512 bfloat16",
    "_is_amx_tile_supported": "AMX",
    "_is_amx_fp16_supported": "AMX float16",
}


def examine_machine(device: str, root: Path, measure: Measure) -> Machine:
    """Examine the devices, and the speed of `device`. Raises `UsageError` or `ModelError` if it does not exist."""
    on = _choose(device)
    auto = _choose("auto")
    return Machine(
        processor=_processor(root),
        accelerators=_accelerators(),
        auto_device=str(auto) if auto else None,
        device=str(on) if on else None,
        speeds=tuple(_speeds(on, measure)) if on else (),
        ram_bytes=_ram_bytes(),
        held_bytes=_held_bytes(),
        bounds=_bounds(on, root) if on else (),
        kernels=_kernels(on) if on else (),
        why_not_compiled=_why_not_compiled(on) if on else None,
        bfloat16_gain=read_gain(str(on)) if on else None,
    )


def _choose(device: str) -> torch.device | None:
    """The device, or None if torch cannot be imported."""
    try:
        return choose_device(device)
    except (ImportError, OSError):
        return None


def _processor(root: Path) -> Processor:
    return Processor(
        name=cpu_name(root),
        physical_cores=_cores(logical=False),
        logical_cores=_cores(logical=True),
        torch_threads=_torch_threads(),
        threads_set_by=next((name for name in THREAD_VARIABLES if os.environ.get(name)), None),
        vectors=_vectors(),
        sixteen_bit=_sixteen_bit(),
    )


@or_else(None)
def _cores(*, logical: bool) -> int | None:
    import psutil

    return psutil.cpu_count(logical=logical)


@or_else(None)
def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


@or_else(None)
def _vectors() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


@or_else(())
def _sixteen_bit() -> tuple[str, ...]:
    import torch

    return tuple(name for asked, name in SIXTEEN_BIT.items() if getattr(torch.cpu, asked, bool)())


@or_else(())
def _accelerators() -> tuple[Accelerator, ...]:
    import torch

    cuda = tuple(_cuda(index) for index in range(torch.cuda.device_count()))
    return (*cuda, *_mps())


def _cuda(index: int) -> Accelerator:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return Accelerator(
        name=f"cuda:{index}",
        model=properties.name,
        total_bytes=properties.total_memory,
        free_bytes=_cuda_free_bytes(index),
        compute_capability=f"{properties.major}.{properties.minor}",
        has_bfloat16=_cuda_has_bfloat16(index),
    )


@or_else(None)
def _cuda_free_bytes(index: int) -> int:
    import torch

    return int(torch.cuda.mem_get_info(index)[0])


@or_else(None)
def _cuda_has_bfloat16(index: int) -> bool:
    import torch

    with torch.cuda.device(index):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _mps() -> Iterator[Accelerator]:
    import torch

    if torch.backends.mps.is_available():
        total = int(torch.mps.recommended_max_memory())
        yield Accelerator("mps", platform.processor(), total, total - int(torch.mps.driver_allocated_memory()))


def _speeds(device: torch.device, measure: Measure) -> Iterator[MatmulSpeed]:
    names = ["float32", "bfloat16"] + (["float16"] if device.type != "cpu" else [])
    for name in names:
        yield MatmulSpeed(name, _speed(device, name, measure))


@or_else(None)
def _speed(device: torch.device, dtype: str, measure: Measure) -> float:
    import torch

    return measure(device, getattr(torch, dtype))


@or_else(())
def _kernels(device: torch.device) -> tuple[LinearKernels, ...]:
    """The kernels that a run would choose; measures nothing."""
    import torch

    from batchgen.engines.continuous.packing import why_plain
    from batchgen.engines.int8.support import INT8, why_no_int8

    dtypes = (torch.float32, torch.bfloat16)
    floats = (LinearKernels(str(dtype).removeprefix("torch."), why_plain(device, dtype)) for dtype in dtypes)
    return (*floats, LinearKernels(INT8, why_no_int8(device.type)))


@or_else(None)
def _why_not_compiled(device: torch.device) -> str | None:
    from batchgen.engines.compiled.support import why_not_compiled

    return why_not_compiled() if device.type == "cpu" else "on the CPU only"


def measure_gflops(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """The best rate, in GFLOP/s, of a product of `ROWS` tokens within `MEASURE_S`; the first one is a warm-up."""
    import torch

    left = torch.ones(ROWS, INNER, device=device, dtype=dtype)  # [rows, inner]
    right = torch.ones(INNER, COLUMNS, device=device, dtype=dtype)  # [inner, columns]

    def multiply() -> float:
        start = clock()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return clock() - start

    end = clock() + MEASURE_S
    first = multiply()
    times = [first] if clock() > end else []
    end = clock() + MEASURE_S
    while clock() < end:
        times.append(multiply())
    return 2 * ROWS * INNER * COLUMNS / min(times) / 1e9


@or_else(None)
def _ram_bytes() -> int:
    return installed_bytes()


@or_else(None)
def _held_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


@or_else(())
def _bounds(device: torch.device, root: Path) -> tuple[Bound, ...]:
    return tuple(memory_bounds(device, root=root))
