"""The parts of the check, most valuable first, at full size or tiny."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.models import DTYPES, ENGINES, SHAPES, forget, random_model
from benchmarks.gpu.parity import CASES, TINY_CASES, TINY_WIDTHS, WIDTHS, not_numbers, parity
from benchmarks.gpu.report import Report
from benchmarks.gpu.speed import backed_off, memory, speed, syncs

PARITY_LAYERS = 4  # of each shape: with more layers, accumulated rounding would hide errors
ROWS = (1, 8, 32, 128, 512, 1024)


def parts(device: torch.device, is_tiny: bool, report: Report) -> Iterator[tuple[str, Callable[[], None]]]:
    """Return each part by its name; its results go into the report."""
    names = [(name, dtype) for dtype in DTYPES for name in SHAPES]
    for name, dtype in names:
        yield f"parity, {name}, {dtype}", partial(_parity, device, name, dtype, is_tiny, report)
    for name in SHAPES:
        yield f"out of memory, {name}", partial(_backed_off, device, name, is_tiny, report)
        yield f"syncs, {name}", partial(_syncs, device, name, is_tiny, report)
    for name, dtype in names[:1] if is_tiny else names[:4]:
        yield f"memory, {name}, {dtype}", partial(_memory, device, name, dtype, is_tiny, report)
    for dtype in (torch.bfloat16,) if is_tiny else (torch.bfloat16, torch.float32):
        for name in SHAPES:
            for rows in (2,) if is_tiny else ROWS:
                part = partial(_speed, device, name, dtype, rows, is_tiny, report)
                yield f"tokens/s, {name}, {dtype}, {rows} rows", part
    forget(device)


def _parity(device: torch.device, name: str, dtype: torch.dtype, is_tiny: bool, report: Report) -> None:
    forget(device)
    model = random_model(name, device, dtype, PARITY_LAYERS, is_tiny=is_tiny)
    report.not_numbers.append(not_numbers(model, TINY_WIDTHS if is_tiny else WIDTHS))
    report.parity += parity(model, TINY_CASES if is_tiny else CASES)


def _backed_off(device: torch.device, name: str, is_tiny: bool, report: Report) -> None:
    model = random_model(name, device, torch.float32, is_tiny=is_tiny)
    rows, longest = (16, 24) if is_tiny else (256, 256)
    report.backed_off += [backed_off(model, engine, rows, longest) for engine in ENGINES]


def _syncs(device: torch.device, name: str, is_tiny: bool, report: Report) -> None:
    model = random_model(name, device, torch.float32, is_tiny=is_tiny)
    for engine in ENGINES:
        report.syncs += [syncs(model, engine, is_sampled=is_sampled) for is_sampled in (False, True)]


def _memory(device: torch.device, name: str, dtype: torch.dtype, is_tiny: bool, report: Report) -> None:
    model = random_model(name, device, dtype, is_tiny=is_tiny)
    for engine in ENGINES:
        for rows in (8,) if is_tiny else (32, 256):
            report.memory += [memory(model, engine, rows, 32 if is_tiny else 512, is_sampled=s) for s in (False, True)]


def _speed(device: torch.device, name: str, dtype: torch.dtype, rows: int, is_tiny: bool, report: Report) -> None:
    forget(device)
    model = random_model(name, device, dtype, is_tiny=is_tiny)
    report.speed.append(speed(model, rows, 8 if is_tiny else 64, 32 if is_tiny else 128))
