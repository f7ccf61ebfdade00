"""Linear layers in 8-bit integers, and how their inputs become such.

A row's output depends on that row alone: it has a scale of its own, sums of integers are exact in any order, and every
operation on floats works element by element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from batchgen.model.private import int8_linear, pack_int8

MOST = 127  # of a signed 8-bit integer that has its opposite
ZERO_POINT = 128  # of inputs, which are unsigned
PACKED_ROWS = 64  # that a packed weight is laid out for
OUTPUTS_AT_ONCE = 1024  # of a weight that is quantised
LEAST_PEAK = 1e-30  # of a row or column of zeros, whose scale would be 0


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[O, I]` as signed integers with a scale `[O]` for each output; some outputs at a time."""
    scale = torch.linalg.vector_norm(weight, torch.inf, 1, dtype=torch.float32).clamp_min_(LEAST_PEAK).div_(MOST)
    integers = torch.empty(weight.shape, dtype=torch.int8)
    for first in range(0, len(weight), OUTPUTS_AT_ONCE):
        some = slice(first, first + OUTPUTS_AT_ONCE)
        integers[some] = (weight[some].float() / scale[some, None]).round_().clamp_(-MOST, MOST).to(torch.int8)
    return integers, scale


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[N, I]` as unsigned integers around `ZERO_POINT`, with a scale `[N, 1]` for each row."""
    peak = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True, dtype=torch.float32).clamp_min_(LEAST_PEAK)
    scaled = torch.mul(x, MOST / peak).add_(ZERO_POINT + 0.5)  # the conversion cuts off what is behind the point
    return scaled.to(torch.uint8), peak.div_(MOST)


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """Weights `[O, I]` as oneDNN multiplies them, and a bias `[O]` in the dtype of the network."""

    packed: torch.Tensor
    scale: torch.Tensor  # [O], float32
    zeros: torch.Tensor  # [O]: weights have no zero point
    bias: torch.Tensor | None

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> Int8Weight:
        integers, scale = quantize_weight(weight)
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        return cls(pack_int8(integers, PACKED_ROWS), scale, zeros, None if bias is None else bias.detach())

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, I]` -> `[N, O]`, in the dtype of `x`."""
        integers, scale = quantize_rows(x)
        product = int8_linear(integers, ZERO_POINT, self.packed, self.scale, self.zeros, x.dtype)
        scale = scale.to(x.dtype)
        return product.mul_(scale) if self.bias is None else torch.addcmul(self.bias, product, scale)


class Int8Product:
    """One product of an input and the weights of all layers that read it, such as queries, keys and values.

    The layers ask one after the other, with the same tensor; the first one computes for all, the last one forgets.
    """

    def __init__(self, weight: Int8Weight, num_layers: int) -> None:
        self.weight = weight
        self._last = num_layers - 1
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def part(self, x: torch.Tensor, number: int, columns: slice) -> torch.Tensor:
        """What the layer of this number makes of `[…, I]`."""
        if x is not self._input or self._output is None:
            rows = x.reshape(-1, x.shape[-1])
            self._input, self._output = x, self.weight.multiply(rows).view(*x.shape[:-1], -1)
        output = self._output
        if number == self._last:
            self._input = self._output = None
        return output if self._last == 0 else output[..., columns]


class Int8Linear(nn.Module):
    """A layer `[…, I]` -> `[…, O]`: some columns of a product that it may share with others."""

    def __init__(self, product: Int8Product, number: int, first: int, out_features: int, in_features: int) -> None:
        super().__init__()
        self.product, self.number = product, number
        self.columns = slice(first, first + out_features)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product.part(x, self.number, self.columns)
