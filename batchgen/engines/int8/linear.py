"""Linear layers in 8-bit integers, and how their inputs become such.

A row's output depends on that row alone: it has a scale of its own, sums of integers are exact in any order, and every
operation on floats works element by element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from batchgen.model.private import int8_linear, pack_int8, pack_weight, packed_linear

MOST = 127  # of a signed 8-bit integer that has its opposite
ZERO_POINT = 128  # of inputs, which are unsigned
PACKED_ROWS = 64  # that a packed weight is laid out for
OUTPUTS_AT_ONCE = 1024  # of a weight that is quantised
LEAST_PEAK = 1e-30  # of a row or column of zeros, whose scale would be 0


def quantize_weight(
    weight: torch.Tensor, loud: torch.Tensor | None = None, given: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[O, I]` as signed integers with a scale `[O]` for each output, zeros in columns `loud`; some rows at a time.

    Scales that are `given` are those of the integers that the weight was made from: they come back as they were, also
    from 16 bits, which round by a quarter of a step at most.
    """
    integers = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight)) if given is None else given
    least = -MOST if given is None else -MOST - 1
    for first in range(0, len(weight), OUTPUTS_AT_ONCE):
        some = slice(first, first + OUTPUTS_AT_ONCE)
        part = weight[some].float()
        part = part if loud is None else part.index_fill(1, loud, 0.0)
        if given is None:
            scale[some] = part.abs().amax(1).clamp_min_(LEAST_PEAK).div_(MOST)
        integers[some] = (part / scale[some, None]).round_().clamp_(least, MOST).to(torch.int8)
    return integers, scale


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[N, I]` as unsigned integers around `ZERO_POINT`, with a scale `[N, 1]` for each row."""
    peak = x.abs().amax(-1, keepdim=True).float().clamp_min_(LEAST_PEAK)
    scaled = torch.mul(x, MOST / peak).add_(ZERO_POINT + 0.5)  # the conversion cuts off what is behind the point
    # By way of 16 bits, which takes half the time of torch's direct conversion.
    return scaled.to(torch.int16).to(torch.uint8), peak.div_(MOST)


@dataclass(frozen=True, slots=True, eq=False)
class LoudColumns:
    """The few inputs of a layer that are far larger than the others, and their weights, which stay in float32."""

    places: torch.Tensor  # [K]
    others: torch.Tensor  # [I], 1 for all inputs but these
    packed: torch.Tensor  # weights [O, K]

    @classmethod
    def of(cls, weight: torch.Tensor, places: torch.Tensor) -> LoudColumns:
        others = torch.ones(weight.shape[1], dtype=weight.dtype).index_fill(0, places, 0.0)
        return cls(places, others, pack_weight(weight[:, places].float().contiguous(), PACKED_ROWS))


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """Weights `[O, I]` as oneDNN multiplies them, and a bias `[O]`, in float32."""

    packed: torch.Tensor
    scale: torch.Tensor  # [O], float32
    zeros: torch.Tensor  # [O]: weights have no zero point
    bias: torch.Tensor | None
    loud: LoudColumns | None = None

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        places: torch.Tensor | None = None,
        given: torch.Tensor | None = None,
    ) -> Int8Weight:
        """`places` are the inputs that stay in float32, `given` the scales of a weight that was stored in integers."""
        integers, scale = quantize_weight(weight, places, given)
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        loud = None if places is None else LoudColumns.of(weight, places)
        bias = None if bias is None else bias.detach().float()
        return cls(pack_int8(integers, PACKED_ROWS), scale, zeros, bias, loud)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, I]` -> `[N, O]`, in the dtype of `x`."""
        if self.loud is None:
            output = self._scaled(x)
            return (output if self.bias is None else output.add_(self.bias)).to(x.dtype)
        output = packed_linear(x.index_select(1, self.loud.places).float(), self.loud.packed, self.bias)
        return output.add_(self._scaled(x * self.loud.others)).to(x.dtype)

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, O]` in float32, scaled apart from the sum: a fused operation may round by where a number stands."""
        integers, scale = quantize_rows(x)
        return self.product(integers).mul_(scale)

    def product(self, integers: torch.Tensor) -> torch.Tensor:
        """`[N, I]`, unsigned, times the weights and their scales: `[N, O]` in float32."""
        return int8_linear(integers, ZERO_POINT, self.packed, self.scale, self.zeros, torch.float32)


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
