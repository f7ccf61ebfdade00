"""Products in 8-bit integers between compiled loops."""

from __future__ import annotations

from ctypes import addressof, c_int64
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident

import torch

from batchgen.engines.compiled.integers import finish, quantize
from batchgen.engines.compiled.layers import address, name_of
from batchgen.engines.compiled.rows import GELU_TANH
from batchgen.engines.fused.product import ACTIVATIONS
from batchgen.engines.int8.linear import Int8Weight, QuantizedLayer
from batchgen.model.private import packed_linear

QUANTIZE_COST, FINISH_COST = 0.2, 0.3  # nanoseconds of one thread per number, to decide whether threads share the rows
SHAPES_KEPT = 8  # kinds of products whose memory is kept: those of one number of rows


class CompiledInt8(QuantizedLayer):
    """A product `[…, I]` -> `[…, O]` in 8-bit integers; `follow` is an activation, or adds another tensor.

    Integers and scales are those of `Int8Weight.multiply`; all that follows the products is computed in float32.
    """

    counted: torch.Tensor

    def __init__(self, weight: Int8Weight, follow: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight8 = weight
        self.out_features, self.in_features = weight.shape
        counted, self._places = torch.ones(self.in_features), torch.zeros(0, dtype=torch.int64)
        if weight.loud is not None:
            self._places = weight.loud.places
            counted[self._places] = 0
        self.register_buffer("counted", counted, persistent=False)
        self._then = ACTIVATIONS.get(follow) if follow != GELU_TANH else None
        name, activation = name_of(dtype), follow if follow == GELU_TANH else ""
        self._quantize = quantize(name)
        has = {"has_start": weight.loud is not None, "has_bias": weight.bias is not None}
        self._finish = [finish(name, activation, **has, adds=adds) for adds in (False, True)]

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """Add `other` `[…, O]` to the product, if it is given."""
        other = other if other is None else other.contiguous()
        made = self._multiply(x.contiguous(), other)
        return made if self._then is None else self._then(made)

    def _multiply(self, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        weight, groups, inputs, outputs = self.weight8, len(self.weight8.groups), self.in_features, self.out_features
        rows, num_loud = x.numel() // inputs, len(self._places)
        its = scratch(rows, inputs, groups, num_loud, get_ident())
        out = x.new_empty(*x.shape[:-1], outputs)
        self._quantize(
            rows, inputs * QUANTIZE_COST, x.data_ptr(), its.integers_at, its.scales_at, self.counted.data_ptr(),
            self._places.data_ptr(), its.loud_at, rows, inputs, groups, num_loud,
        )  # fmt: skip
        start = None if weight.loud is None else packed_linear(its.loud, weight.loud.packed, None)
        products = [group.product(some) for group, some in zip(weight.groups, its.integers, strict=True)]
        addresses = (c_int64 * groups)(*(product.data_ptr() for product in products))
        self._finish[other is not None](
            rows, outputs * FINISH_COST * groups, addressof(addresses), its.scales_at, address(start),
            address(weight.bias), address(other), out.data_ptr(), rows, outputs, groups,
        )  # fmt: skip
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """The quantized inputs of a product and where they are: integers, scales, and the columns that stay in float32."""

    integers: tuple[torch.Tensor, ...]  # [N, I / G] of each group
    scales: torch.Tensor  # [G, N]
    loud: torch.Tensor  # [N, K]
    integers_at: int
    scales_at: int
    loud_at: int


@lru_cache(SHAPES_KEPT)
def scratch(rows: int, inputs: int, groups: int, num_loud: int, thread: int) -> Scratch:
    """Return memory for a product of these sizes, which layers of a `thread` use one after the other.

    To allocate it anew for each product would take a third of the time of a few rows.
    """
    integers = torch.empty(groups, rows, inputs // groups, dtype=torch.uint8, device="cpu")
    scales, loud = (torch.empty(*of, dtype=torch.float32, device="cpu") for of in ((groups, rows), (rows, num_loud)))
    return Scratch(integers.unbind(), scales, loud, integers.data_ptr(), scales.data_ptr(), loud.data_ptr())
