"""How much memory was used: its peak, and what a stretch of work added to it.

Sources: proc_pid_status(5), proc_pid_clear_refs(5).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from batchgen.machine.limits import ROOT, accelerator_of, resident_bytes, sizes_in

if TYPE_CHECKING:
    import torch


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
        cuda = accelerator or accelerator_of(device)
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
        status = sizes_in(self._folder / "status")
        if "VmRSS" in status and "VmHWM" in status:
            return status["VmRSS"], status["VmHWM"]
        return resident_bytes(), peak_bytes()

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
