"""The fastest exact linear layer on this CPU, and the fused form of an activation: the same functions, other kernels.

Changes a model in place. Knows nothing of batches or caches.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

TRIAL_ROWS = 64  # of a decode step in full swing
TRIAL_OUTPUTS = 8192  # of an output layer: as quick for each as the whole vocabulary is
TRIALS = 3
# Packed layers hold their weights in blocks that oneDNN multiplies as they lie. All together they have to be this much
# faster in the trial to be worth the time of packing.
LEAST_GAIN = 1.05

Layer: TypeAlias = nn.Linear | Conv1D


class PackedLinear(nn.Module):
    """A linear layer `[…, I]` -> `[…, O]` whose weights lie as oneDNN wants them; `has_gelu` applies its tanh form."""

    has_gelu = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight `[O, I]`, bias `[O]`."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), TRIAL_ROWS)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activation, form = ("gelu", "tanh") if self.has_gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight_packed, self.bias, activation, [], form)  # type: ignore[no-any-return]


def speed_up(network: nn.Module, *, has_room: Callable[[int], bool] = lambda num_bytes: True) -> bool:
    """Replaces linear layers and activations by faster ones that compute the same; says whether layers were packed.

    Which is faster, the layers as they are or in oneDNN's packed form, is measured (a fifth of a second for GPT-2).
    `has_room` is asked for the bytes of each layer's copy; one that shares its weights with the embedding stays beside
    them, the others' own weights are let go.
    """
    _fuse_activations(network)
    layers = [place for place in _linears(network) if has_room(place[2].weight.nbytes)]
    if not _packing_pays([layer for *_, layer in layers], has_room):
        return False
    while layers:  # whose own weights are let go one by one
        parent, name, layer = layers.pop()
        setattr(parent, name, PackedLinear(weight_of(layer), layer.bias))
    _fuse_gelu(network)
    return True


def weight_of(layer: Layer) -> torch.Tensor:
    """A view `[O, I]`, whichever way the layer keeps it."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def _linears(network: nn.Module) -> Iterator[tuple[nn.Module, str, Layer]]:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in (nn.Linear, Conv1D):
                yield parent, name, layer


def _packing_pays(layers: list[Layer], has_room: Callable[[int], bool]) -> bool:
    """Measured on one layer of each shape; what counts is the time of all of them."""
    alike: dict[tuple[type[Layer], torch.Size], list[torch.Tensor]] = defaultdict(list)
    for layer in layers:
        alike[type(layer), weight_of(layer).shape].append(weight_of(layer))
    plain_s = packed_s = 0.0
    for weights in alike.values():
        sample = weights[0][:TRIAL_OUTPUTS]
        if not (_can_pack(sample) and has_room(2 * sample.nbytes)):
            return False
        try:
            times = _race(sample)
        except (RuntimeError, AttributeError):  # a build of torch without oneDNN, or without this layout
            return False
        share = sum(map(len, weights)) / len(sample)
        plain_s, packed_s = plain_s + share * times[0], packed_s + share * times[1]
    return plain_s > LEAST_GAIN * packed_s


def _can_pack(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


@torch.inference_mode()
def _race(weight: torch.Tensor) -> list[float]:
    """Seconds of a product with `weight` as it lies and packed, the best of trials in turn."""
    x = torch.ones(TRIAL_ROWS, weight.shape[1], dtype=weight.dtype)
    forms = [partial(F.linear, x, weight), partial(PackedLinear(weight, None), x)]
    return [min(times) for times in zip(*([_timed(form) for form in forms] for _ in range(TRIALS)), strict=True)]


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _fuse_activations(network: nn.Module) -> None:
    """GPT-2's gelu, which transformers writes out in Python operations, as the one kernel that computes it."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))


def _fuse_gelu(network: nn.Module) -> None:
    """Lets packed inner layers of GPT-2 apply the gelu behind them: one pass over memory, and one rounding, fewer."""
    for module in network.modules():
        if type(module) is GPT2MLP and type(module.c_fc) is PackedLinear and type(module.act) is nn.GELU:
            module.c_fc.has_gelu = True
            module.act = nn.Identity()
