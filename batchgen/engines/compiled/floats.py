"""Linear layers in float32 and bfloat16 on compiled loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn

from batchgen.engines.compiled.products import FOLLOWS, in_panels, multiply, order, shares
from batchgen.engines.compiled.tensors import address, has_tiles, name_of
from batchgen.engines.compiled.tile import PANEL
from batchgen.engines.compiled.writer import WORD
from batchgen.engines.continuous.packing import PackedLinear
from batchgen.engines.fused.product import ADD, GATE

PRODUCT_COST = {torch.float32: 0.02, torch.bfloat16: 0.01}  # nanoseconds of one thread, roughly, per product of two


class TiledLinear(PackedLinear):
    """A linear layer `[…, I]` -> `[…, O]` with weights in the layout of `tile`: P panels of W words, `[P, W, 48]`.

    All sums are in float32, and so is what follows the product. Outputs are filled up with zeros.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, follow: str = "") -> None:
        """Lay out weight `[O, I]` and keep bias `[O]`."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        panels, numbers = -(-self.out_features // PANEL), WORD // weight.element_size()
        self.weight_packed = weight.new_empty(panels, self.in_features // numbers, PANEL, numbers)
        for panel, its in zip(self.weight_packed, in_panels(weight.detach(), follow), strict=True):
            whole = F.pad(its, (0, 0, 0, PANEL - len(its)))
            panel.copy_(whole.view(PANEL, -1, numbers).transpose(0, 1))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.follow = follow
        self._follow = follow if follow in FOLLOWS else ""
        self._bias = None if bias is None else torch.cat(list(in_panels(bias.detach().float(), follow)))

    def _as_loaded(self) -> torch.Tensor:
        rows = self.weight_packed.transpose(1, 2).reshape(-1, self.in_features)
        return rows[order(self.out_features, self.follow).argsort()]

    @staticmethod
    def supports(weight: torch.Tensor, follow: str) -> bool:
        """Whether the loop is right and fast for a weight `[O, I]` on this machine."""
        return follow in ("", ADD, *FOLLOWS) and weight.shape[1] % 2 == 0 and has_tiles(name_of(weight.dtype))

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x, other = x.contiguous(), None if other is None else other.contiguous()
        words, dtype = self.weight_packed.shape[1], name_of(x.dtype)
        rows, size = x.numel() // self.in_features, self.out_features
        out = x.new_empty(*x.shape[:-1], size // 2 if self.follow.startswith(GATE) else size)
        items, parts = shares(rows, size, self.follow)
        cost = rows * size * self.in_features / items * PRODUCT_COST[x.dtype]
        multiply(dtype, dtype, self._follow, has_bias=self.bias is not None, adds=other is not None)(
            items, cost, x.data_ptr(), 0, 0, 0, self.weight_packed.data_ptr(), 0, 0, address(self._bias),
            address(other), out.data_ptr(), rows, size, words, 0, parts,
        )  # fmt: skip
        return out
