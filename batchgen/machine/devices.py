"""The processor as a device, where it is the only one; told without torch, which knows all others."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Files of the drivers of NVIDIA's GPUs (also under WSL and on Jetson) and of AMD's.
DRIVERS = ("dev/nvidia*", "dev/nvhost*", "dev/nvmap", "dev/dxg", "dev/kfd", "proc/driver/nvidia/version")


class Device(Protocol):
    """What of a torch.device counts before torch is there."""

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
    """The CPU if `--device NAME` can mean nothing else here; None where torch has to be asked."""
    return Cpu() if name == "cpu" or (name == "auto" and not _may_have_others(root)) else None


def _may_have_others(root: Path) -> bool:
    if sys.platform != "linux":  # Apple's GPUs are always there; of other systems nothing is known
        return True
    return any(next(root.glob(driver), None) for driver in DRIVERS)
