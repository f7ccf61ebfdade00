"""Linear layers in 8-bit integers, and how their inputs are quantized.

A row's output depends on that row alone: it has its own scale, sums of integers are exact in any order, and every
operation on floats is element-wise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from batchgen.engines.int8.packed_rows import packed_rows
from batchgen.engines.int8.support import INT8
from batchgen.model.private import int8_linear, pack_int8, pack_weight, packed_linear

MOST = 127  # the largest signed 8-bit integer whose negative also fits
ZERO_POINT = 128  # of inputs, which are unsigned
PACKED_ROWS = 64  # the number of rows that a packed weight is laid out for
OUTPUTS_AT_ONCE = 1024  # outputs of a weight that are quantized together
# Number of inputs that share a scale in layers with fewer outputs than inputs (docs/decisions.md).
LARGEST_GROUP, SMALLEST_GROUP, STEP = 768, 128, 32
CHECKED_OUTPUTS = 256  # of a weight, spread over all of them
MOST_ROUNDING = 0.51  # steps between a weight and its integer
NO_ZERO_POINTS = torch.zeros(1, dtype=torch.int64)  # of weights, which are signed
LEAST_PEAK = 1e-30  # for a row or column of zeros, whose scale would be 0


def quantize_weight(
    weight: torch.Tensor, loud: torch.Tensor | None = None, given: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize `[O, I]` to signed integers, some rows at a time: a scale `[O]` per output, and zeros in columns `loud`.

    If the weight was made from integers, `given` are their scales: the same integers come back, even from 16-bit
    weights, which round by at most a quarter of a step.
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


def quantize_rows(
    x: torch.Tensor, num_groups: int = 1, loud: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize `[N, I]` to unsigned integers around `ZERO_POINT`, `[G, N, I / G]`, with a scale per row of a group.

    Scales are `[G, N, 1]`. The values of columns `loud` do not matter because their weights are 0; they are only kept
    out of the scales.
    """
    size = x.abs()
    size = size if loud is None else size.index_fill_(1, loud, 0.0)
    peak = size.view(len(x), num_groups, -1).amax(-1, keepdim=True).float().clamp_min_(LEAST_PEAK)  # [N, G, 1]
    scaled = torch.mul(x.view(len(x), num_groups, -1), MOST / peak)  # [N, G, I / G]
    scaled = scaled.add_(ZERO_POINT + 0.5)  # the conversion truncates
    # Via 16 bits, which takes half the time of torch's direct conversion.
    integers = scaled.to(torch.int16).transpose(0, 1).to(torch.uint8, memory_format=torch.contiguous_format)
    return integers, peak.transpose(0, 1).div(MOST)


def num_groups(num_outputs: int, num_inputs: int) -> int:
    """Return how many groups of inputs have their own scales: one, unless a layer has few outputs and adding is cheap.

    >>> num_groups(576, 1536), num_groups(1536, 576), num_groups(2048, 8192)
    (2, 1, 16)
    """
    sizes = range(LARGEST_GROUP, SMALLEST_GROUP - 1, -STEP) if num_inputs > num_outputs else ()
    return next((num_inputs // size for size in sizes if num_inputs % size == 0), 1)


class QuantizedWeight(Protocol):
    """Weights `[O, I]` in 8-bit integers, and the bias; `kernels` is what multiplies them."""

    kernels: ClassVar[str]

    @property
    def shape(self) -> tuple[int, int]:
        """The number of outputs and of inputs."""

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[…, I]` -> `[…, O]`, in the dtype of `x`."""

    def of_outputs(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the weights `[N, I]` of some outputs `[N]`, in float32, as they are multiplied."""

    def gives_outputs_of(self, weight: torch.Tensor) -> bool:
        """Whether `of_outputs` gives back those of `[O, I]`, up to rounding: not if a layout is unknown."""


class Quantize(Protocol):
    """Quantize a weight `[O, I]` with a bias `[O]`.

    Inputs `places` stay in float32, and `given` are the scales `[O]` of a weight stored in integers.
    """

    def __call__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        places: torch.Tensor | None = None,
        given: torch.Tensor | None = None,
        /,
    ) -> QuantizedWeight: ...


@dataclass(frozen=True, slots=True, eq=False)
class LoudColumns:
    """The few inputs of a layer that are far larger than the others, and their weights, which stay in float32."""

    places: torch.Tensor  # [K]
    packed: torch.Tensor  # weights [O, K]

    @classmethod
    def of(cls, weight: torch.Tensor, places: torch.Tensor) -> LoudColumns:
        return cls(places, pack_weight(weight[:, places].float().contiguous(), PACKED_ROWS))

    def of_outputs(self, outputs: torch.Tensor) -> torch.Tensor:
        return packed_rows(self.packed, outputs, (self.packed.shape[0], self.packed.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class Int8Group:
    """Weights `[O, I]` of some inputs, in oneDNN's layout."""

    packed: torch.Tensor
    scale: torch.Tensor  # [O], float32

    @classmethod
    def of(cls, integers: torch.Tensor, scale: torch.Tensor) -> Int8Group:
        return cls(pack_int8(integers.contiguous(), PACKED_ROWS), scale)

    def product(self, integers: torch.Tensor) -> torch.Tensor:
        """Multiply unsigned `[N, I]` with the weights and their scales: `[N, O]` in float32."""
        return int8_linear(integers, ZERO_POINT, self.packed, self.scale, NO_ZERO_POINTS, torch.float32)

    def of_outputs(self, outputs: torch.Tensor) -> torch.Tensor:
        num_inputs, num_outputs = self.packed.shape
        return packed_rows(self.packed, outputs, (num_outputs, num_inputs)) * self.scale[outputs, None]


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """Weights `[O, I]` in groups of inputs, and a bias `[O]` in float32."""

    kernels: ClassVar[str] = INT8
    groups: tuple[Int8Group, ...]
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
        """Quantize a weight, as `Quantize` says."""
        number, spared = num_groups(*weight.shape), torch.ones(weight.shape[1], dtype=torch.bool)
        loud = None if places is None else LoudColumns.of(weight, places)
        if places is not None:
            spared[places] = False
        groups = [
            Int8Group.of(*quantize_weight(part, (~some).nonzero().flatten(), given))
            for part, some in zip(weight.chunk(number, 1), spared.chunk(number), strict=True)
        ]
        return cls(tuple(groups), None if bias is None else bias.detach().float(), loud)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.groups[0].scale), sum(group.packed.shape[0] for group in self.groups)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        if self.loud is None:
            output = self._products(x, None)
            return (output if self.bias is None else output.add_(self.bias)).to(x.dtype)
        output = packed_linear(x.index_select(1, self.loud.places).float(), self.loud.packed, self.bias)
        return self._products(x, output, self.loud.places).to(x.dtype)

    def gives_outputs_of(self, weight: torch.Tensor) -> bool:
        some = torch.arange(0, len(weight), -(-len(weight) // CHECKED_OUTPUTS))
        largest_step = torch.stack([group.scale[some] for group in self.groups]).amax(0)[:, None]
        try:
            found = self.of_outputs(some)
            return bool(((found - weight[some].float()).abs() <= MOST_ROUNDING * largest_step).all())
        except (RuntimeError, AttributeError):  # the layout has other sizes, or torch does not give its memory
            return False

    def of_outputs(self, outputs: torch.Tensor) -> torch.Tensor:
        weights = torch.cat([group.of_outputs(outputs) for group in self.groups], 1)
        if self.loud is not None:
            weights[:, self.loud.places] = self.loud.of_outputs(outputs)
        return weights

    def _products(self, x: torch.Tensor, output: torch.Tensor | None, loud: torch.Tensor | None = None) -> torch.Tensor:
        """Return `[N, O]` in float32, added to `output`.

        Scaling and adding are separate operations, because the rounding of a fused one may depend on where a number is
        in memory.
        """
        integers, scales = quantize_rows(x, len(self.groups), loud)
        for group, some, scale in zip(self.groups, integers, scales, strict=True):
            product = group.product(some).mul_(scale)
            output = product if output is None else output.add_(product)
        assert output is not None
        return output


class Int8Product:
    """One product of an input and the weights of all layers that read it, such as queries, keys and values.

    The layers call it one after the other with the same tensor; the first call computes for all, the last call frees
    it.
    """

    def __init__(self, weight: QuantizedWeight, num_layers: int) -> None:
        self.weight = weight
        self._last = num_layers - 1
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def part(self, x: torch.Tensor, number: int, columns: slice) -> torch.Tensor:
        """Return the output of layer `number` for `[…, I]`."""
        if x is not self._input or self._output is None:
            self._input, self._output = x, self.weight.multiply(x)
        output = self._output
        if number == self._last:
            self._input = self._output = None
        return output if self._last == 0 else output[..., columns]


class QuantizedLayer(nn.Module):
    """A layer in 8-bit integers, and what multiplies them."""

    def __init__(self, kernels: str) -> None:
        super().__init__()
        self.kernels = kernels


class Int8Linear(QuantizedLayer):
    """A layer `[…, I]` -> `[…, O]`: some columns of a product that it may share with other layers."""

    def __init__(self, product: Int8Product, number: int, first: int, out_features: int, in_features: int) -> None:
        super().__init__(product.weight.kernels)
        self.product, self.number = product, number
        self.columns = slice(first, first + out_features)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product.part(x, self.number, self.columns)
