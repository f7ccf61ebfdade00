"""Make one of the engine's own networks give each row the same bits in any batch, as far as this machine can."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakSet

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from batchgen.engines.continuous.packing import PackedLinear
from batchgen.engines.continuous.raw_products import fix_raw_products
from batchgen.engines.continuous.row_counts import FixedRows, Product, RowCounts, kept_counts
from batchgen.engines.continuous.rowwise import by_element
from batchgen.engines.fused.product import ADD

_fixed: WeakSet[nn.Module] = WeakSet()  # networks whose rows are to have the same bits in any batch
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")


class ByElement(nn.Module):
    """An activation whose results do not depend on where in memory a number is."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return by_element(self.activation, x)


def fix_bits(network: nn.Module) -> str | None:
    """Fix rows of linear layers and activations; return why bits still depend on the batch, None if they do not."""
    _fixed.add(network)
    if next(network.parameters()).device.type != "cpu":
        return "kernels of accelerators are not checked"
    problem = None
    for parent, name, layer in list(_children(network)):
        if type(layer).__module__ in ACTIVATIONS:
            setattr(parent, name, ByElement(layer))
        elif type(layer) in (PackedLinear, nn.Linear, Conv1D):  # not Llama 4's router, which gives a pair
            counts = _counts_of(layer)
            if counts is None:
                problem = problem or f"products of {name} have no number of rows with the same bits"
            elif counts != RowCounts():
                setattr(parent, name, FixedRows(layer, counts))
    if any(map(_computes_by_itself, network.modules())):
        fix_raw_products(network)
    return problem


def is_fixed(network: nn.Module) -> bool:
    """Whether `fix_bits` has fixed a network."""
    return network in _fixed


def _computes_by_itself(module: nn.Module) -> bool:
    """Whether a family's own module multiplies with its parameters: routers, experts, recurrent layers."""
    is_known = isinstance(module, (PackedLinear, nn.Linear, Conv1D, nn.Embedding, nn.Conv1d))
    is_norm = "norm" in type(module).__name__.lower()
    return not (is_known or is_norm) and next(module.parameters(recurse=False), None) is not None


def _children(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in network.modules():
        for name, layer in parent.named_children():
            yield parent, name, layer


def _counts_of(layer: nn.Module) -> RowCounts | None:
    inputs, outputs, dtype = _shape(layer)
    kind = f"{type(layer).__name__} {getattr(layer, 'follow', '')}".rstrip()
    bias = "" if getattr(layer, "bias", None) is None else " bias"
    return kept_counts(_of_rows_alone(layer), kind + bias, inputs, outputs, dtype)


def _of_rows_alone(layer: nn.Module) -> Product:
    """Return a layer as a function of its rows only, even if it adds another tensor to them."""
    if getattr(layer, "follow", "") != ADD:
        return layer
    outputs = _shape(layer)[1]
    return lambda rows: layer(rows, rows[:, :1].expand(-1, outputs).contiguous())


def _shape(layer: nn.Module) -> tuple[int, int, torch.dtype]:
    """Return inputs, outputs and dtype."""
    if isinstance(layer, PackedLinear):
        return layer.in_features, layer.out_features, layer.weight_packed.dtype
    assert isinstance(layer, (nn.Linear, Conv1D))
    outputs, inputs = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
    return inputs, outputs, layer.weight.dtype
