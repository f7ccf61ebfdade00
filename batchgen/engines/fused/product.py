"""Products of a decoder layer: linear layers side by side, and the operation fused with their result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from transformers.pytorch_utils import Conv1D

from batchgen.engines.continuous.rowwise import by_element

# The operations that may follow a product, by oneDNN's names: an activation, or adding another tensor of its shape.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "swish": F.silu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu none": F.gelu,
    "relu": F.relu,
}
ADD = "add"
GATE = "gate "  # and the name of an activation: it is of the first half of the outputs, times the second half


class Product(nn.Module):
    """Linear layers of one input side by side, `[…, I]` -> `[…, O]`, and the operation `follow`.

    That is an activation, a gate, which gives `[…, O / 2]`, or adds `other`.
    Here they are computed one by one; `linear` packs them into one.
    """

    def __init__(self, layers: Sequence[nn.Module], follow: str = "") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.follow = follow

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        made = torch.cat([layer(x) for layer in self.layers], -1)
        if self.follow in ACTIVATIONS:
            return by_element(ACTIVATIONS[self.follow], made)
        if self.follow.startswith(GATE):
            return gated(partial(by_element, ACTIVATIONS[self.follow.removeprefix(GATE)]), made)
        return made if other is None else made + other


def gated(activation: Callable[[torch.Tensor], torch.Tensor], inner: torch.Tensor) -> torch.Tensor:
    """Return an activation of the first half of `[…, 2 I]` times the second half: `[…, I]`."""
    gate, through = inner.chunk(2, -1)
    return activation(gate).mul_(through)


def is_linear(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D)


def weight_of(layer: nn.Module) -> torch.Tensor:
    """Return the weight as a view `[O, I]`, whichever way the layer keeps it."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def bias_of(layers: Sequence[nn.Module]) -> torch.Tensor | None:
    """Return the bias `[O]` of layers side by side."""
    if all(layer.bias is None for layer in layers):
        return None
    given = (layer.bias if isinstance(layer.bias, torch.Tensor) else None for layer in layers)
    none = (torch.zeros_like(weight_of(layer)[:, 0]) for layer in layers)
    return torch.cat([zeros if bias is None else bias.detach() for bias, zeros in zip(given, none, strict=True)])


def activation_name(module: nn.Module) -> str | None:
    """Return which of `ACTIVATIONS` a module computes; None if it computes none of them."""
    x = torch.linspace(-8, 8, 201)
    made = module(x)
    return next((name for name, function in ACTIVATIONS.items() if torch.allclose(function(x), made, atol=1e-5)), None)
