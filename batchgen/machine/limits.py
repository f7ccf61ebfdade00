"""How much memory is available and how much was used: machine, limits, accelerator. Decides nothing.

`root` stands for `/`, so that tests can lay out their own machine; `accelerator` stands for torch.cuda or torch.mps.
Sources: proc_meminfo(5), proc_pid_status(5), proc_pid_limits(5), proc_pid_clear_refs(5).
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from batchgen.errors import UsageError
from batchgen.machine import cgroups
from batchgen.machine.cgroups import read_lines
from batchgen.machine.devices import Device
from batchgen.records import MemoryLimit as MemoryLimit

if TYPE_CHECKING:
    import torch

ROOT = Path("/")
# What kernels can free without swapping, for those older than 3.14, which have no MemAvailable.
RECLAIMABLE = ("MemFree", "Inactive(file)", "SReclaimable")
SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?|\.\d{1,15}) ?(?:(%)|([kmgtp])(?:i?b)?|b)?", re.ASCII | re.IGNORECASE)
LEAST_BYTES = 1 << 20  # a limit without a unit that is below this probably lacks its unit
UNITS = {unit: 1 << (10 * power) for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit in force, with a readable name, and the bytes left under it, at least 0."""

    name: str
    available_bytes: int

    @property
    def kills(self) -> bool:
        """Whether the kernel kills a process that exceeds it; other limits only refuse memory, so it can back off."""
        return self.name == "MemAvailable" or self.name.startswith("cgroup ")


def cpu_name(root: Path = ROOT) -> str:
    """Return the processor's name from Linux, or else what Python knows about it."""
    names = (line.split(":", 1)[1].strip() for line in read_lines(root / "proc/cpuinfo") if line[:10] == "model name")
    return next(names, "") or platform.processor() or platform.machine()


def parse_memory(text: str) -> MemoryLimit:
    """Parse a size in bytes or in units of 1024, or a share of at most 100%. Raises `UsageError`.

    >>> parse_memory("1.5GiB").size_bytes
    1610612736
    >>> parse_memory("80%").share
    Fraction(4, 5)
    """
    named = " ".join(text.split())
    mistake = UsageError(f"--memory {named}: give a size such as 6G or a share such as 80%")
    match = SIZE.fullmatch(named)
    if match is None:
        raise mistake
    number, percent, unit = match.groups(default="")
    if named.replace(".", "").isdigit() and 0 < Fraction(number) < LEAST_BYTES:
        raise UsageError(f"--memory {named} has no unit: did you mean {_likely_size(named)}?")
    if percent:
        limit = MemoryLimit(named, share=Fraction(number) / 100)
    else:
        limit = MemoryLimit(named, size_bytes=int(Fraction(number) * UNITS[unit.lower()]))
    if not limit.size_bytes and not 0 < (limit.share or 0) <= 1:
        raise mistake
    return limit


def _likely_size(number: str) -> str:
    """Return a number with the unit that it lacks: gigabytes if the machine has as many, otherwise % or megabytes."""
    value = Fraction(number)
    if value < 1:
        return f"{float(value * 100):g}%"
    if value * UNITS["g"] <= installed_bytes():
        return f"{number}G"
    return f"{number}%" if value <= 100 else f"{number}M"


def installed_bytes() -> int:
    """Return the bytes of memory that this machine has, whatever limits apply."""
    import psutil

    return int(psutil.virtual_memory().total)


def share_of(memory: MemoryLimit | None, num_workers: int, num_beside: int) -> MemoryLimit:
    """Return the limit for one of `num_workers` processes, `num_beside` of which (itself included) share its device.

    A size is for all workers together, a share for the workers of one device.

    >>> share_of(parse_memory("6G"), 2, 1).size_bytes == 3 << 30
    True
    >>> share_of(parse_memory("80%"), 2, 2).share, share_of(None, 4, 2).share
    (Fraction(2, 5), Fraction(1, 2))
    """
    if memory is not None and memory.size_bytes is not None:
        return MemoryLimit(f"{memory.text} / {num_workers}", size_bytes=memory.size_bytes // num_workers)
    share = Fraction(1) if memory is None or memory.share is None else memory.share
    text = "100%" if memory is None else memory.text
    return MemoryLimit(f"{text} / {num_beside}", share=share / num_beside)


def available_bytes(
    device: Device, memory: MemoryLimit | None = None, root: Path = ROOT, *, accelerator: Any = None
) -> int:
    """Return the bytes that a new batch may take on `device` without swapping or being killed: the tightest bound's."""
    return memory_bounds(device, memory, root, accelerator=accelerator)[0].available_bytes


def memory_bounds(
    device: Device, memory: MemoryLimit | None = None, root: Path = ROOT, *, accelerator: Any = None
) -> list[Bound]:
    """Return all limits on what a batch takes on `device`, the tightest first; at least one."""
    accelerator = accelerator or _accelerator(device)
    headrooms = _headrooms(device, root, accelerator)
    if memory is not None:
        held = _held_bytes(device, root, accelerator)
        headrooms[f"--memory {memory.text}"] = memory.headroom(min(headrooms.values()), held)
    tightest_first = sorted(headrooms.items(), key=lambda item: item[1])
    return [Bound(name, max(0, left)) for name, left in tightest_first]


def peak_bytes() -> int:
    """Return the most memory this process has held so far: the high-water mark of its resident set.

    On Linux, starting a `PeakMeter` resets this mark; the meter's own `peak_bytes` remembers the maximum.
    """
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class PeakMeter:
    """Measures the peak memory of a stretch of work, on top of what was held when it started.

    `others` counts what else took memory in this process; while it goes up, a stretch cannot be measured.
    """

    def __init__(
        self,
        device: torch.device,
        root: Path = ROOT,
        *,
        accelerator: Any = None,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        is_cuda = device.type == "cuda"
        cuda = accelerator or _accelerator(device)
        self._gauge: _Gauge = _CudaGauge(device, cuda) if is_cuda else _ProcessGauge(root)
        self._sees_batches = device.type in ("cpu", "cuda")
        self._highest = 0
        self._held = 0
        self._mark: int | None = None  # growth can only be read from a high-water mark above this one
        self._others, self._others_before = others, 0

    def start(self) -> None:
        self._highest = self.peak_bytes
        fell = self._gauge.lower_high_water()
        self._held, high = self._gauge.read()
        self._mark = 0 if fell else high
        self._others_before = self._others()

    def growth_bytes(self) -> int | None:
        """Return the peak bytes since `start` minus those held at `start`; None if that cannot be known."""
        if self._mark is None or not self._sees_batches or self._others() != self._others_before:
            return None
        _held, high = self._gauge.read()
        return max(0, high - self._held) if high > self._mark else None

    @property
    def peak_bytes(self) -> int:
        """The most bytes that the process (on CUDA: its tensors on the device) held, as far as the meter saw."""
        _held, high = self._gauge.read()
        return max(self._highest, high)


class _Gauge(Protocol):
    def read(self) -> tuple[int, int]:
        """Return the bytes held now and the high-water mark."""

    def lower_high_water(self) -> bool:
        """Reset the high-water mark to what is held now; return False if that is not supported."""


class _ProcessGauge:
    """The resident set of this process: VmRSS and VmHWM; writing 5 to clear_refs resets the latter."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "proc/self"

    def read(self) -> tuple[int, int]:
        status = _sizes(self._folder / "status")
        if "VmRSS" in status and "VmHWM" in status:
            return status["VmRSS"], status["VmHWM"]
        return _resident_bytes(), peak_bytes()

    def lower_high_water(self) -> bool:
        path = self._folder / "clear_refs"
        try:
            return path.is_file() and path.write_text("5") > 0
        except OSError:
            return False


class _CudaGauge:
    """What torch's allocator has allocated on a device."""

    def __init__(self, device: torch.device, cuda: Any) -> None:
        self._device = device
        self._cuda = cuda

    def read(self) -> tuple[int, int]:
        return int(self._cuda.memory_allocated(self._device)), int(self._cuda.max_memory_allocated(self._device))

    def lower_high_water(self) -> bool:
        self._cuda.reset_peak_memory_stats(self._device)
        return True


def _accelerator(device: Device) -> Any:
    """Return torch's module for a device's memory; None for the CPU."""
    if device.type == "cpu":
        return None
    import torch

    return torch.mps if device.type == "mps" else torch.cuda


def _headrooms(device: Device, root: Path, accelerator: Any) -> dict[str, int]:
    """Return the free bytes under each limit, keyed by the limit's name; negative if more is held than allowed."""
    if device.type == "cuda":
        return _cuda_headroom(device, accelerator)
    bounds = _system_headroom(root) | cgroups.headrooms(root) | _address_space_headroom(root)
    if device.type == "mps":  # it uses the machine's memory
        bounds["mps"] = accelerator.recommended_max_memory() - accelerator.current_allocated_memory()
    return bounds


def _cuda_headroom(device: Device, cuda: Any) -> dict[str, int]:
    """Return what is free on the device plus what torch's allocator keeps for reuse."""
    free, _total = cuda.mem_get_info(device)
    cached = cuda.memory_reserved(device) - cuda.memory_allocated(device)
    index = cuda.current_device() if device.index is None else device.index
    return {f"cuda:{index}": int(free + cached)}


def _system_headroom(root: Path) -> dict[str, int]:
    meminfo = _sizes(root / "proc/meminfo")
    if "MemAvailable" in meminfo:
        return {"MemAvailable": meminfo["MemAvailable"]}
    if "MemFree" in meminfo:
        return {"MemAvailable": sum(meminfo.get(name, 0) for name in RECLAIMABLE)}
    import psutil

    return {"available memory": int(psutil.virtual_memory().available)}


def _address_space_headroom(root: Path) -> dict[str, int]:
    """Return the soft limit of the address space minus what is in use."""
    limits = "\n".join(read_lines(root / "proc/self/limits"))
    soft = re.search(r"^Max address space +(\d+) ", limits, re.MULTILINE)
    size = _sizes(root / "proc/self/status").get("VmSize")
    if soft is None or size is None:
        return {}
    return {"RLIMIT_AS (ulimit -v)": int(soft[1]) - size}


def held_bytes(device: Device) -> int:
    """Return the bytes that this process holds now in the memory of `device`."""
    return _held_bytes(device, ROOT, _accelerator(device))


def _held_bytes(device: Device, root: Path, accelerator: Any) -> int:
    """Return the bytes that this process holds in the memory of `device`.

    On mps, Metal's buffers are added: they are not in the resident set.
    """
    if device.type == "cuda":
        return int(accelerator.memory_allocated(device))
    resident = _sizes(root / "proc/self/status").get("VmRSS") or _resident_bytes()
    return resident + (accelerator.current_allocated_memory() if device.type == "mps" else 0)


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _sizes(path: Path) -> dict[str, int]:
    """Parse the lines `Name:   123 kB` of a file in /proc; return bytes."""
    matches = (re.fullmatch(r"(\S+):\s+(\d+) kB", line) for line in read_lines(path))
    return {match[1]: int(match[2]) * 1024 for match in matches if match}
