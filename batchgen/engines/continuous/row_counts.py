"""Linear layers whose rows have the same bits in any batch: the numbers of rows that their products may have.

Kernels sum in a different order for a different number of rows. A check of bits on the layer itself finds which numbers
agree; the result is kept with the threads, versions and processor that it depends on. Other numbers of rows are padded,
or cut into blocks. Knows nothing of attention.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from batchgen.machine.kept import keep, read_kept
from batchgen.machine.limits import cpu_name

FILE = "row-counts"
CHECK = 3  # version of the check: a different check finds different numbers
NO_COUNTS = "none"

BLOCK = 64  # rows, where their number affects bits: fast, and what packed layers are laid out for
FEWER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48)  # smaller numbers that may give the same bits as a block
TRIED = (2, 3, 4, 5, 7, 8, 13, 16, 24, 31, 32, 33, 36, 48, 63, 64, 65, 128)
TRIED_IN_PREFILLS = (96, 127, 129, 192, 255, 256, 384, 500, 512, 777, 1024)
SAMPLE, WIDE_SAMPLE = 256, 16  # rows that a check compares; the second for wide layers
NARROW = 128  # outputs; with so few in 16 bits, a different summation order shows too rarely
WIDE = 16384  # outputs; a layer this wide computes logits and never sees all tokens of a prefill

Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class RowCounts:
    """The numbers of rows that give a row the same bits: any from `least` on; or `block` and some `fewer`."""

    least: int = 1
    block: int | None = None
    fewer: tuple[int, ...] = ()

    def pieces(self, num_rows: int) -> Iterator[tuple[int, int, int]]:
        """Yield where each product starts and stops, and how many rows it is padded to.

        >>> list(RowCounts(least=2).pieces(1)), list(RowCounts(block=64, fewer=(4,)).pieces(67))
        ([(0, 1, 2)], [(0, 64, 64), (64, 67, 4)])
        """
        if self.block is None:
            yield 0, num_rows, self.filled(num_rows)
            return
        for start in range(0, num_rows, self.block):
            stop = min(num_rows, start + self.block)
            yield start, stop, self.filled(stop - start)

    def filled(self, num_rows: int) -> int:
        """Return how many rows one product of `num_rows` rows is padded to.

        >>> RowCounts(least=2).filled(1), RowCounts(block=64, fewer=(4,)).filled(5)
        (2, 64)
        """
        sizes = (max(self.least, num_rows),) if self.block is None else (*self.fewer, self.block)
        return next(size for size in sizes if size >= num_rows)


class FixedRows(nn.Module):
    """A linear layer that only multiplies the numbers of rows that `counts` allows."""

    def __init__(self, layer: nn.Module, counts: RowCounts) -> None:
        super().__init__()
        self.layer = layer
        self.counts = counts

    @property
    def weight(self) -> Any:
        """For parents that read their layer's weight and bias (Mamba)."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        return self.layer.bias

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Inputs `[…, I]`, and `[…, O]` if the layer adds another tensor."""
        return in_pieces(self.layer, self.counts, *inputs)


def in_pieces(product: Callable[..., torch.Tensor], counts: RowCounts, *inputs: torch.Tensor) -> torch.Tensor:
    """Multiply rows `[…, I]` with a weight, giving `[…, O]`, in the numbers of rows that `counts` allows."""
    rows = [x.reshape(-1, x.shape[-1]) for x in inputs]  # [N, I]
    pieces = counts.pieces(len(rows[0]))
    parts = [_filled(product, [its[start:stop] for its in rows], size) for start, stop, size in pieces]
    found = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found.view(*inputs[0].shape[:-1], -1)


def _filled(product: Callable[..., torch.Tensor], rows: list[torch.Tensor], size: int) -> torch.Tensor:
    num_rows = len(rows[0])
    if size == num_rows:
        return product(*rows)
    return product(*(pad(its, (0, 0, 0, size - num_rows)) for its in rows))[:num_rows]


def kept_counts(product: Product, kind: str, inputs: int, outputs: int, dtype: torch.dtype) -> RowCounts | None:
    """Like `find_row_counts`, but keep the result for this kind and shape, with everything that it depends on."""
    place = f"{cpu_name()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}"
    key = f"{CHECK}: {kind} {inputs} x {outputs} {str(dtype).removeprefix('torch.')}, {place}"
    kept = read_kept(FILE).get(key)
    if kept is None:
        with torch.inference_mode():
            counts = find_row_counts(product, inputs, dtype)
        keep(FILE, {key: [counts.least, counts.block, counts.fewer] if counts else NO_COUNTS})
        return counts
    return None if kept == NO_COUNTS else RowCounts(kept[0], kept[1], tuple(kept[2]))


def find_row_counts(product: Product, num_inputs: int, dtype: torch.dtype) -> RowCounts | None:
    """Return which numbers of rows give the same bits in a product `[N, I]` -> `[N, O]` here; None if none do."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(SAMPLE, num_inputs, generator=random).to(dtype)
    expected = product(rows[:BLOCK])  # [BLOCK, O]
    is_wide = expected.shape[1] >= WIDE
    shuffled = torch.randperm(BLOCK, generator=random)
    if not torch.equal(product(rows[shuffled]), expected[shuffled]):
        return None
    if expected.shape[1] < NARROW and dtype != torch.float32:
        return RowCounts(block=BLOCK)
    if is_wide:
        rows = rows[:BLOCK]
    else:  # 16 bits hide most differences in summation order, so many rows are compared
        expected = torch.cat([product(rows[first : first + BLOCK]) for first in range(0, SAMPLE, BLOCK)])

    def agrees(count: int) -> bool:
        if count > len(rows):
            times = -(-count // len(rows))
            return torch.equal(product(rows.repeat(times, 1)[:count]), expected.repeat(times, 1)[:count])
        last = max(count, WIDE_SAMPLE) if is_wide else len(rows)
        starts = range(0, last - count + 1, count)
        return all(torch.equal(product(rows[i : i + count]), expected[i : i + count]) for i in starts)

    tried = TRIED if is_wide else (*TRIED, *TRIED_IN_PREFILLS)
    least = next((least for least in range(2, 5) if all(agrees(count) for count in tried if count >= least)), None)
    if least is None:
        return RowCounts(block=BLOCK, fewer=tuple(count for count in FEWER if agrees(count)))
    return RowCounts(1 if least == 2 and agrees(1) else least)
