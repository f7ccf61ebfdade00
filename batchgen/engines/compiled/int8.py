"""Products in 8-bit integers between compiled loops."""

from __future__ import annotations

from ctypes import addressof, c_int64

import torch

from batchgen.engines.compiled.integers import finish, quantize
from batchgen.engines.compiled.layers import address, name_of
from batchgen.engines.compiled.rows import GELU_TANH
from batchgen.engines.fused.product import ACTIVATIONS
from batchgen.engines.int8.linear import Int8Weight, QuantizedLayer
from batchgen.model.private import packed_linear

QUANTIZE_COST, FINISH_COST = 0.2, 0.3  # nanoseconds of one thread per number, to decide whether threads share the rows


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
        rows = x.numel() // inputs
        integers = x.new_empty(groups, rows, inputs // groups, dtype=torch.uint8)
        scales = x.new_empty(groups, rows, dtype=torch.float32)
        out = x.new_empty(*x.shape[:-1], outputs)
        loud = x.new_empty(rows, len(self._places), dtype=torch.float32)
        self._quantize(
            rows, inputs * QUANTIZE_COST, x.data_ptr(), integers.data_ptr(), scales.data_ptr(), self.counted.data_ptr(),
            self._places.data_ptr(), loud.data_ptr(), rows, inputs, groups, len(self._places),
        )  # fmt: skip
        start = None if weight.loud is None else packed_linear(loud, weight.loud.packed, None)
        products = [group.product(some) for group, some in zip(weight.groups, integers, strict=True)]
        addresses = (c_int64 * groups)(*(product.data_ptr() for product in products))
        self._finish[other is not None](
            rows, outputs * FINISH_COST * groups, addressof(addresses), scales.data_ptr(), address(start),
            address(weight.bias), address(other), out.data_ptr(), rows, outputs, groups,
        )  # fmt: skip
        return out
