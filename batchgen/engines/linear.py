"""The fastest exact linear layer on this CPU, and the fused form of an activation: the same functions, other kernels.

Changes a model in place. Knows nothing of batches or caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

TRIAL_ROWS = 64  # of a decode step in full swing
TRIALS = 5
# A packed layer holds its weights in blocks that oneDNN multiplies as they lie. It has to be this much faster in the
# trial to be worth the time of packing.
LEAST_GAIN = 1.1


class PackedLinear(nn.Module):
    """A linear layer `[…, I]` -> `[…, O]` whose weights lie as oneDNN wants them."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight `[O, I]`, bias `[O]`."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TRIAL_ROWS)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight_packed, self.bias, "none", [], "")  # type: ignore[no-any-return]


def speed_up(network: nn.Module, *, has_room: Callable[[int], bool] = lambda num_bytes: True) -> bool:
    """Replaces linear layers and activations by faster ones that compute the same; says whether layers were packed.

    Which is faster, torch's own choice or oneDNN's packed form, is measured on the model's largest inner layer
    (a few milliseconds). An output layer that shares its weights with the embedding has to become a copy of them:
    `has_room` is asked for its bytes.
    """
    _fuse_activations(network)
    layers = list(_linears(network))
    if not layers or not _packing_pays(layers, has_room):
        return False
    embedding = network.get_input_embeddings().weight  # type: ignore[operator]
    while layers:  # whose own weights are let go one by one
        parent, name, layer = layers.pop()
        weight = weight_of(layer)
        is_tied = weight.data_ptr() == embedding.data_ptr()
        if is_tied and not has_room(weight.nbytes):
            continue
        setattr(parent, name, PackedLinear(weight, layer.bias))
    return True


def weight_of(layer: nn.Linear | Conv1D) -> torch.Tensor:
    """`[O, I]`, whichever way the layer keeps it."""
    return layer.weight.T.contiguous() if isinstance(layer, Conv1D) else layer.weight


def _linears(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in (nn.Linear, Conv1D):
                yield parent, name, layer


def _packing_pays(layers: list[tuple[nn.Module, str, nn.Linear | Conv1D]], has_room: Callable[[int], bool]) -> bool:
    """Measured: `F.linear` against the packed form, in turn."""
    *inner, _output = sorted((layer for *_, layer in layers), key=lambda layer: layer.weight.numel())
    weight = weight_of(inner[-1] if inner else _output)
    is_known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if not (is_known and has_room(2 * weight.nbytes)):
        return False
    try:
        packed = PackedLinear(weight, None)
        x = torch.ones(TRIAL_ROWS, weight.shape[1], dtype=weight.dtype)
        plain = partial(F.linear, x, weight)
        contest: dict[Callable[[], torch.Tensor], list[float]] = {plain: [], partial(packed, x): []}
        for _ in range(TRIALS):
            for candidate, seconds in contest.items():
                started = time.perf_counter()
                candidate()
                seconds.append(time.perf_counter() - started)
    except (RuntimeError, AttributeError):  # a build of torch without oneDNN, or without this layout
        return False
    plain_s, packed_s = (min(seconds) for seconds in contest.values())
    return plain_s > LEAST_GAIN * packed_s


def _fuse_activations(network: nn.Module) -> None:
    """GPT-2's gelu, which transformers writes out in Python operations, as the one kernel that computes it."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
