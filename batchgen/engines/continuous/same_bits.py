"""Makes a network of the engine's own give each row the same bits beside any others, as far as this machine can.

What a check of bits found of a layer's shape is kept with the threads, versions and processor that it depends on.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from batchgen.engines.continuous.packing import PackedLinear
from batchgen.engines.continuous.row_counts import FixedRows, RowCounts, find_row_counts
from batchgen.engines.continuous.rowwise import by_element
from batchgen.machine.kept import keep, read_kept
from batchgen.machine.limits import cpu_name

FILE = "row-counts"
CHECK = 2  # another check finds other numbers
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
NO_COUNTS = "none"


class ByElement(nn.Module):
    """An activation whose results do not depend on where in memory a number stands."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return by_element(self.activation, x)


def fix_bits(network: nn.Module) -> str | None:
    """Fixes rows of linear layers and activations; why the network's bits depend on the batch, None if they do not."""
    if next(network.parameters()).device.type != "cpu":
        return "kernels of accelerators are not checked"
    problem = None
    for parent, name, layer in list(_children(network)):
        if type(layer).__module__ in ACTIVATIONS:
            setattr(parent, name, ByElement(layer))
        elif type(layer) in (PackedLinear, nn.Linear, Conv1D):  # Llama 4's router is one too, and gives a pair
            counts = _counts_of(layer)
            if counts is None:
                problem = problem or f"products of {name} have no number of rows with the same bits"
            elif counts != RowCounts():
                setattr(parent, name, FixedRows(layer, counts))
    return problem


def _children(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in network.modules():
        for name, layer in parent.named_children():
            yield parent, name, layer


def _counts_of(layer: nn.Module) -> RowCounts | None:
    key = _key(layer)
    kept = read_kept(FILE).get(key)
    if kept is None:
        num_inputs, _, dtype = _shape(layer)
        with torch.inference_mode():
            counts = find_row_counts(layer, num_inputs, dtype)
        keep(FILE, {key: [counts.least, counts.block, counts.fewer] if counts else NO_COUNTS})
        return counts
    return None if kept == NO_COUNTS else RowCounts(kept[0], kept[1], tuple(kept[2]))


def _key(layer: nn.Module) -> str:
    inputs, outputs, dtype = _shape(layer)
    kind = f"{type(layer).__name__}{' gelu' if getattr(layer, 'has_gelu', False) else ''}"
    bias = "" if getattr(layer, "bias", None) is None else " bias"
    place = f"{cpu_name()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}"
    return f"{CHECK}: {kind} {inputs} x {outputs}{bias} {str(dtype).removeprefix('torch.')}, {place}"


def _shape(layer: nn.Module) -> tuple[int, int, torch.dtype]:
    """Inputs, outputs, dtype."""
    if isinstance(layer, PackedLinear):
        return layer.in_features, layer.out_features, layer.weight_packed.dtype
    assert isinstance(layer, (nn.Linear, Conv1D))
    outputs, inputs = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
    return inputs, outputs, layer.weight.dtype
