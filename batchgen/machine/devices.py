"""Detects, without importing torch, whether the CPU is the only device; all other devices are left to torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Driver files of NVIDIA GPUs (also under WSL and on Jetson) and of AMD GPUs.
DRIVERS = ("dev/nvidia*", "dev/nvhost*", "dev/nvmap", "dev/dxg", "dev/kfd", "proc/driver/nvidia/version")


class Device(Protocol):
    """The parts of a torch.device that are needed before torch is imported."""

    @property
    def type(self) -> str: ...

    @property
    def index(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Cpu:
    """Stands in for `torch.device("cpu")`."""

    type: str = "cpu"
    index: int | None = None

    def __str__(self) -> str:
        return self.type


def certain_cpu(name: str, root: Path = Path("/")) -> Cpu | None:
    """Return the CPU if `--device NAME` can mean nothing else on this machine; None if torch has to decide."""
    return Cpu() if name == "cpu" or (name == "auto" and not _may_have_others(root)) else None


def _may_have_others(root: Path) -> bool:
    if sys.platform != "linux":  # Apple's GPUs are always present; other systems are unknown
        return True
    return any(next(root.glob(driver), None) for driver in DRIVERS)
