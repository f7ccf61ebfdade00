"""Read single rows of a weight in oneDNN's layout, so that an embedding needs no copy of the output layer's weight."""

from __future__ import annotations

import torch

from batchgen.model.private import bytes_of_packed

BLOCK = 64  # outputs that lie side by side


def packed_rows(packed: torch.Tensor, rows: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return the weights `[N, I]` of rows `[N]` of a packed weight, whose `shape` is `[O, I]`.

    With AVX-512 the layout is `[O / 64, I', 64]` of 32 bits: four 8-bit integers or one float32 of an output. Sizes are
    rounded up, and 8-bit integers are followed by 32 bits for each output. Other machines have other layouts, so the
    result has to be checked.
    """
    num_outputs, num_inputs = shape
    numbers = bytes_of_packed(packed).view(torch.int32)
    blocks = -(-num_outputs // BLOCK)
    columns = len(numbers) // (blocks * BLOCK) - (packed.dtype == torch.int8)
    layout = numbers[: blocks * columns * BLOCK].view(blocks, columns, BLOCK)
    return layout[rows // BLOCK, :, rows % BLOCK].view(packed.dtype)[:, :num_inputs]
