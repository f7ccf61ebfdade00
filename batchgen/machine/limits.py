"""How much memory is available: machine, limits, accelerator. Decides nothing.

`root` stands for `/`, so that tests can lay out their own machine; `accelerator` stands for torch.cuda or torch.mps.
Sources: proc_meminfo(5), proc_pid_status(5), proc_pid_limits(5).
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from batchgen.errors import UsageError
from batchgen.machine import cgroups
from batchgen.machine.cgroups import read_lines
from batchgen.machine.devices import Device
from batchgen.records import MemoryLimit as MemoryLimit

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
    accelerator = accelerator or accelerator_of(device)
    headrooms = _headrooms(device, root, accelerator)
    if memory is not None:
        held = _held_bytes(device, root, accelerator)
        headrooms[f"--memory {memory.text}"] = memory.headroom(min(headrooms.values()), held)
    tightest_first = sorted(headrooms.items(), key=lambda item: item[1])
    return [Bound(name, max(0, left)) for name, left in tightest_first]


def accelerator_of(device: Device) -> Any:
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
    meminfo = sizes_in(root / "proc/meminfo")
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
    size = sizes_in(root / "proc/self/status").get("VmSize")
    if soft is None or size is None:
        return {}
    return {"RLIMIT_AS (ulimit -v)": int(soft[1]) - size}


def held_bytes(device: Device) -> int:
    """Return the bytes that this process holds now in the memory of `device`."""
    return _held_bytes(device, ROOT, accelerator_of(device))


def _held_bytes(device: Device, root: Path, accelerator: Any) -> int:
    """Return the bytes that this process holds in the memory of `device`.

    On mps, Metal's buffers are added: they are not in the resident set.
    """
    if device.type == "cuda":
        return int(accelerator.memory_allocated(device))
    resident = sizes_in(root / "proc/self/status").get("VmRSS") or resident_bytes()
    return resident + (accelerator.current_allocated_memory() if device.type == "mps" else 0)


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def sizes_in(path: Path) -> dict[str, int]:
    """Parse the lines `Name:   123 kB` of a file in /proc; return bytes."""
    matches = (re.fullmatch(r"(\S+):\s+(\d+) kB", line) for line in read_lines(path))
    return {match[1]: int(match[2]) * 1024 for match in matches if match}
