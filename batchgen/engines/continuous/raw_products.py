"""Products and activations that a family's own code computes, outside of any layer that could be replaced.

Routers, experts and recurrent layers call torch's functions with their parameters. While such a network runs, these
calls are intercepted: products run in numbers of rows that give the same bits, activations in whole vectors. Knows no
family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from torch.overrides import TorchFunctionMode

from batchgen.engines.continuous.row_counts import Product, RowCounts, in_pieces, kept_counts
from batchgen.engines.continuous.rowwise import bmm_of_rows, by_element

ACTIVATIONS = {
    F.silu, F.gelu, F.softplus, F.sigmoid, F.mish, F.hardswish,
    torch.sigmoid, torch.Tensor.sigmoid, torch.exp2, torch.Tensor.exp2,
}  # fmt: skip
MATRIX_PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
GROUPED_PRODUCT = "grouped_mm"  # the end of the function's name in every version of torch


def fix_raw_products(network: nn.Module) -> None:
    """Make a network's forwards run under `FixedProducts`."""
    mode = FixedProducts()
    network.register_forward_pre_hook(lambda *_: _enter(mode))
    network.register_forward_hook(lambda *_: _leave(mode), always_call=True)


def _enter(mode: Any) -> None:
    mode.__enter__()


def _leave(mode: Any) -> None:
    mode.__exit__(None, None, None)


class FixedProducts(TorchFunctionMode):
    """Intercepts torch's functions, so that a row's result does not depend on the other rows."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[object, ...], RowCounts | None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ACTIVATIONS:
            return by_element(lambda x: func(x, *args[1:], **kwargs), args[0])
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func in MATRIX_PRODUCTS:
            return self._matmul(func, *args)
        if getattr(func, "__name__", "").endswith(GROUPED_PRODUCT):
            return self._grouped(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self._product(x, partial(F.linear, weight=weight, bias=bias), weight, bias is not None)

    def _matmul(self, func: Callable[..., torch.Tensor], left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Multiply with a matrix, from either side; other products only combine numbers of the same row."""
        if right.dim() == 2 and left.dim() >= 2:
            return self._linear(left, right.mT)
        if left.dim() == 2 and right.dim() > 2:
            return self._linear(right.mT, left).mT
        if left.dim() == right.dim() == 3 and len(left) == len(right):
            return bmm_of_rows(left, right)
        return func(left, right)

    def _grouped(
        self, rows: torch.Tensor, weights: torch.Tensor, offs: torch.Tensor, *_: Any, **others: Any
    ) -> torch.Tensor:
        """Multiply rows `[S, I]`, in groups that end at `offs`, each with its own weight from `[E, I, O]`."""
        found = rows.new_zeros(len(rows), weights.shape[2])
        start = 0
        for weight, stop in zip(weights, offs.tolist(), strict=True):
            if stop > start:
                found[start:stop] = self._linear(rows[start:stop], weight.mT)
            start = stop
        return found

    def _product(self, x: torch.Tensor, product: Product, weight: torch.Tensor, has_bias: bool) -> torch.Tensor:
        outputs, inputs = weight.shape
        kind = f"raw{'' if weight.is_contiguous() else ' transposed'}{' bias' if has_bias else ''}"
        key = (kind, inputs, outputs, weight.dtype, torch.get_num_threads())
        if key not in self._counts:
            self._counts[key] = kept_counts(product, kind, inputs, outputs, weight.dtype)
        counts = self._counts[key]
        return product(x) if counts is None or not x.numel() else in_pieces(product, counts, x)
