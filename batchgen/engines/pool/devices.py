"""Which devices a pool's workers run on, and each worker's share of them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from batchgen.engines.pool.worker import ModelRecipe
from batchgen.errors import UsageError
from batchgen.machine.limits import share_of
from batchgen.machine.process import num_cpus, require_address_space
from batchgen.model.weights import choose_device
from batchgen.records import EngineChoice

if TYPE_CHECKING:
    import torch


def choose_devices(name: str, num_workers: int | None = None) -> list[torch.device]:
    """Return the device of each worker: `num_workers` devices, or by default one for each device that `name` lists.

    `auto` means all CUDA devices, if there are several. If the list has one device, the run needs no pool. Raises
    `UsageError` for a device without a worker, and for devices of different kinds.
    """
    require_address_space()
    import torch

    names = [part.strip() for part in name.split(",")]
    if name == "auto" and num_workers != 1 and torch.cuda.device_count() > 1:
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())][:num_workers]
    devices = [choose_device(name) for name in names]
    count = num_workers or len(devices)
    if count < len(devices):
        raise UsageError(f"--workers {count} leaves devices of --device {name} without a worker: name fewer devices")
    if len({device.type for device in devices}) > 1:
        raise UsageError(f"--device {name}: all devices of a run must be of the same kind")
    return [devices[number % len(devices)] for number in range(count)]


def share_out(recipe: ModelRecipe, devices: list[torch.device]) -> list[ModelRecipe]:
    """Return the recipe for each of `devices`. Workers on one device share its memory and its cores."""
    num_workers, memory = len(devices), recipe.options.memory
    return [
        replace(
            recipe,
            device=str(device),
            options=replace(recipe.options, memory=share_of(memory, num_workers, devices.count(device))),
            num_threads=num_threads(num_workers, recipe.begun) if device.type == "cpu" else None,
        )
        for device in devices
    ]


def num_threads(num_workers: int, begun: EngineChoice | None = None) -> int:
    """Return a worker's share of the CPUs that this process may use, unless OMP_NUM_THREADS sets a number.

    A run continues with the number of threads it was started with, if there are enough CPUs.
    """
    own = os.environ.get("OMP_NUM_THREADS", "")
    if own.isdecimal() and int(own):
        return int(own)
    if begun and begun.threads and begun.threads * num_workers <= num_cpus():
        return begun.threads
    return max(1, num_cpus() // num_workers)
