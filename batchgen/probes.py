"""How many bytes there are: the machine's memory, cgroup limits, RLIMIT_AS, the accelerator. Decides nothing.

`root` stands for `/`, so that tests can lay out a machine of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that a new batch may take on `device` without swapping or being killed."""
    if device.type == "cuda":
        return _cuda_bytes(device)
    bounds = [_system_bytes(root), *_cgroup_bytes(root), *_address_space_bytes(root)]
    return max(0, min(bounds))


def peak_bytes() -> int:
    """The most memory this process has held so far: its resident set's high-water mark."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda_bytes(device: torch.device) -> int:
    import torch

    free, _total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + cached)


def _system_bytes(root: Path) -> int:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def _address_space_bytes(root: Path) -> Iterator[int]:
    """Headroom under RLIMIT_AS (`ulimit -v`): the limit minus the address space already in use."""
    limit = next((line.split()[3] for line in _lines(root / "proc/self/limits") if "address space" in line), "")
    size = next((line.split()[1] for line in _lines(root / "proc/self/status") if line.startswith("VmSize:")), "")
    if limit.isdigit() and size.isdigit():
        yield int(limit) - int(size) * 1024


def _cgroup_bytes(root: Path) -> Iterator[int]:
    """Headroom in this process's memory cgroup and in each of its ancestors, v2 and v1."""
    for line in _lines(root / "proc/self/cgroup"):
        _hierarchy, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _headrooms(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _headrooms(root / "sys/fs/cgroup/memory", path, *names)


def _headrooms(mount: Path, path: str, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    # Inside a container the mount shows the container's own group at its top, so missing folders are skipped. v1 has
    # no word for "no limit" but the largest number, which never is the least.
    for folder in _ancestors(mount, path):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is None or usage is None:
            continue
        statistics = dict(line.split() for line in _lines(folder / "memory.stat"))
        yield limit - usage + int(statistics.get(cache_name, 0))


def _ancestors(mount: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
