"""Linear layers in 8-bit integers on compiled loops: two passes, from floats to integers and from these to outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from batchgen.engines.compiled.integers import quantize
from batchgen.engines.compiled.products import FOLLOWS, multiply, order, shares
from batchgen.engines.compiled.tensors import address, name_of
from batchgen.engines.compiled.tile import GROUP, PANEL, QUAD
from batchgen.engines.fused.product import ACTIVATIONS, GATE
from batchgen.engines.int8.linear import ZERO_POINT, QuantizedLayer, quantize_weight
from batchgen.engines.int8.support import INT8, INT8_COMPILED
from batchgen.model.shape import INPUTS_PER_SCALE

# Nanoseconds of one thread, roughly, to decide whether threads share the work: per number, and per product of two.
QUANTIZE_COST, PRODUCT_COST = 0.3, 0.005
SHAPES_KEPT = 8  # kinds of products whose memory is kept: those of one number of rows
PANELS_AT_ONCE = 20  # that are quantized together


def num_loud_in_tiles(num_inputs: int) -> int:
    """How many inputs of a layer stay in float32: few, because groups of 64 keep large ones from all others."""
    return max(1, num_inputs // INPUTS_PER_SCALE)


@dataclass(frozen=True, slots=True, eq=False)
class TiledWeight:
    """Weights `[O, I]` in the layout of `tile`, with scales for each output and 64 inputs, and a bias `[O]` in float32.

    Outputs and inputs are filled up, to P panels of 48 and G groups of 64.
    """

    kernels: ClassVar[str] = INT8_COMPILED
    integers: torch.Tensor  # [P, G, 16, 48, 4], unsigned and 128 too large
    scales: torch.Tensor  # [P, G, 48]
    bias: torch.Tensor | None
    counted: torch.Tensor  # [I], 0 for the inputs at `places` and else 1
    places: torch.Tensor  # [K], of the inputs that stay in float32
    loud: torch.Tensor  # their weights, [P, K, 48]
    shape: tuple[int, int]
    order: torch.Tensor | None = None  # of outputs, [O], if a gate follows

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        places: torch.Tensor | None = None,
        given: torch.Tensor | None = None,
        follow: str = "",
    ) -> TiledWeight:
        """Quantize a weight, as `int8.linear.Quantize` says, for a product that may be followed by a gate."""
        num_outputs, num_inputs = weight.shape
        places = torch.zeros(0, dtype=torch.int64) if places is None else places
        panels, groups = -(-num_outputs // PANEL), -(-num_inputs // GROUP)
        in_order = order(num_outputs, follow)
        integers = torch.empty(panels, groups, GROUP // QUAD, PANEL, QUAD, dtype=torch.uint8)
        scales, loud = torch.empty(panels, groups, PANEL), torch.empty(panels, len(places), PANEL)
        for first in range(0, panels, PANELS_AT_ONCE):
            its = slice(first, min(first + PANELS_AT_ONCE, panels))
            outputs = in_order[its.start * PANEL : its.stop * PANEL]
            missing = (its.stop - first) * PANEL - len(outputs)
            part = F.pad(weight[outputs].float(), (0, groups * GROUP - num_inputs, 0, missing)).contiguous()
            loud[its] = part[:, places].view(its.stop - first, PANEL, len(places)).transpose(1, 2)
            own = None if given is None else F.pad(given[outputs], (0, missing), value=1.0).repeat_interleave(groups)
            numbers, scale = quantize_weight(part.index_fill(1, places, 0.0).view(-1, GROUP), given=own)
            tiled = numbers.view(-1, PANEL, groups, GROUP // QUAD, QUAD).permute(0, 2, 3, 1, 4)
            integers[its] = tiled.to(torch.int16).add_(ZERO_POINT).to(torch.uint8)
            scales[its] = scale.view(-1, PANEL, groups).transpose(1, 2)
        counted = torch.ones(num_inputs).index_fill_(0, places, 0.0)
        bias = None if bias is None else bias.detach().float()[in_order]
        kept = in_order if follow.startswith(GATE) else None
        return cls(integers, scales, bias, counted, places, loud, (num_outputs, num_inputs), kept)

    def multiply(self, x: torch.Tensor, other: torch.Tensor | None = None, follow: str = "") -> torch.Tensor:
        """Return `[…, I]` -> `[…, O]`, in the dtype of `x`, plus `other` `[…, O]` if it is given.

        All sums are in float32, and so is what follows, one of `FOLLOWS`; with a gate the result is `[…, O / 2]`.
        """
        x, other = x.contiguous(), None if other is None else other.contiguous()
        (num_outputs, num_inputs), groups = self.shape, self.scales.shape[1]
        rows, num_loud, dtype = x.numel() // num_inputs, len(self.places), name_of(x.dtype)
        its = scratch(rows, groups, num_loud, get_ident())
        has_gate = follow.startswith(GATE)
        out = x.new_empty(*x.shape[:-1], num_outputs // 2 if has_gate else num_outputs)
        quantize(dtype)(
            rows, num_inputs * QUANTIZE_COST, x.data_ptr(), its.integers_at, its.scales_at, its.starts_at,
            self.counted.data_ptr(), self.places.data_ptr(), its.loud_at, rows, num_inputs, num_loud,
        )  # fmt: skip
        items, parts = shares(rows, num_outputs, follow)
        multiply(INT8, dtype, follow, has_bias=self.bias is not None, adds=other is not None)(
            items, rows * num_outputs * num_inputs / items * PRODUCT_COST, its.integers_at, its.scales_at,
            its.starts_at, its.loud_at, self.integers.data_ptr(), self.scales.data_ptr(), self.loud.data_ptr(),
            address(self.bias), address(other), out.data_ptr(), rows, num_outputs, groups, num_loud, parts,
        )  # fmt: skip
        return out if has_gate or self.order is None else out[..., self.order.argsort()]

    def gives_outputs_of(self, weight: torch.Tensor) -> bool:
        return weight.shape == self.shape

    def of_outputs(self, outputs: torch.Tensor) -> torch.Tensor:
        outputs = outputs if self.order is None else self.order.argsort()[outputs]
        panel, place = outputs // PANEL, outputs % PANEL
        numbers = self.integers[panel, :, :, place].float().sub_(ZERO_POINT)  # [N, G, 16, 4]
        weights = numbers.flatten(2).mul_(self.scales[panel, :, place, None]).flatten(1)[:, : self.shape[1]]
        return weights.index_copy(1, self.places, self.loud[panel, :, place])


class CompiledInt8(QuantizedLayer):
    """A product `[…, I]` -> `[…, O]` in 8-bit integers; `follow` is what `fused.product` says."""

    def __init__(self, weight: TiledWeight, follow: str) -> None:
        super().__init__(weight.kernels)
        self.weight8 = weight
        self.out_features, self.in_features = weight.shape
        self._follow = follow if follow in FOLLOWS else ""
        self._then = None if self._follow else ACTIVATIONS.get(follow)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """Add `other` `[…, O]` to the product, if it is given."""
        made = self.weight8.multiply(x, other, self._follow)
        return made if self._then is None else self._then(made)


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Memory for the quantized inputs of a product, and the addresses of its parts."""

    memory: tuple[torch.Tensor, ...]
    integers_at: int  # [N, G, 64]
    scales_at: int  # [N, G]
    starts_at: int  # [N, G]
    loud_at: int  # [N, K]


@lru_cache(SHAPES_KEPT)
def scratch(rows: int, groups: int, num_loud: int, thread: int) -> Scratch:
    """Return memory for a product of these sizes, which layers of a `thread` use one after the other.

    To allocate it anew for each product would take a third of the time of a few rows.
    """
    integers = torch.empty(rows, groups * GROUP, dtype=torch.int8, device="cpu")
    scales, loud = (torch.empty(rows, size, dtype=torch.float32, device="cpu") for size in (groups, num_loud))
    starts = torch.empty(rows, groups, dtype=torch.int32, device="cpu")
    memory = (integers, scales, starts, loud)
    return Scratch(memory, *(tensor.data_ptr() for tensor in memory))
