"""A network's linear layers packed, and its activations fused: the same functions, other kernels.

Which kernels is decided by rule, by device, dtype and what this build of torch can do, never by a measurement that a
busy machine could turn; a run keeps to those that it was started with. Knows nothing of batches or caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from batchgen.engines.continuous.packing import HiddenWeight, PackedLinear, can_pack
from batchgen.engines.int8.network import is_quantized
from batchgen.engines.int8.support import INT8

PACKED, PARTLY, PLAIN = "packed", "packed, except weights shared with the embedding", "plain"

Layer: TypeAlias = nn.Linear | Conv1D


class UnpackedLinear(nn.Module):
    """A loaded layer whose own weight was let go: each product gets it back, bit for bit, from the packed layer.

    The operation is the loaded one, `F.linear` or that of GPT-2's `Conv1D`.
    """

    def __init__(self, packed: PackedLinear, *, is_conv1d: bool) -> None:
        super().__init__()
        self.packed = packed
        self.is_conv1d = is_conv1d
        self.in_features, self.out_features = packed.in_features, packed.out_features

    # For a parent that reads its layer's weight and bias, as Mamba's does.

    @property
    def weight(self) -> HiddenWeight:
        return self.packed.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.packed.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.packed.weight_packed.to_dense()  # [O, I]
        bias = self.packed.bias
        if not self.is_conv1d:
            return F.linear(x, weight, bias)
        columns = weight.T.contiguous()  # [I, O], as it was loaded
        return torch.addmm(bias, x.view(-1, x.shape[-1]), columns).view(*x.shape[:-1], -1)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer is: its path in the network, and its parent there."""

    path: str
    parent: nn.Module
    name: str
    layer: Layer
    is_shared: bool  # its weight is the embedding's too


def speed_up(
    network: nn.Module,
    loaded: nn.Module | None = None,
    *,
    has_room: Callable[[int], bool] = lambda num_bytes: True,
    kernels: str | None = None,
) -> bool:
    """Replaces a network's linear layers and activations by faster ones of the same function; whether it packed any.

    `loaded`, the network that shares its tensors, is given where nobody else needs it: then its own weights are let go
    one by one, and it gets them back from the packed ones as it needs them. `has_room` is asked for the bytes of
    copies: of all weights, or with `loaded` of those that the embedding shares. `kernels` are those that a run was
    begun with: no more is packed than they say.
    """
    _fuse_activations(network)
    places = list(_places(network))
    copied = sum(place.layer.weight.nbytes for place in places if loaded is None or place.is_shared)
    dtypes = {(place.layer.weight.device, place.layer.weight.dtype) for place in places}
    if kernels == PLAIN or not places or not all(can_pack(*kind) for kind in dtypes):
        return False
    has_all = has_room(copied)
    if not has_all and loaded is None:
        return False
    if kernels == PARTLY or not has_all:
        places = [place for place in places if not place.is_shared]
    while places:  # whose weights are let go one by one
        _pack(places.pop(), loaded)
    _fuse_gelu(network)
    return True


def kernels_of(network: nn.Module) -> str:
    """Which kernels a network's linear layers run on."""
    if is_quantized(network):
        return INT8
    kinds = Counter(type(module) for module in network.modules())
    if not kinds[PackedLinear]:
        return PLAIN
    return PARTLY if kinds[nn.Linear] or kinds[Conv1D] else PACKED


def _pack(place: _Place, loaded: nn.Module | None) -> None:
    packed = PackedLinear(weight_of(place.layer), place.layer.bias)
    setattr(place.parent, place.name, packed)
    if loaded is not None and not place.is_shared:
        parent, _, name = place.path.rpartition(".")
        again = UnpackedLinear(packed, is_conv1d=isinstance(place.layer, Conv1D))
        setattr(loaded.get_submodule(parent), name, again)


def weight_of(layer: Layer) -> torch.Tensor:
    """A view `[O, I]`, whichever way the layer keeps it."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def _places(network: nn.Module) -> Iterator[_Place]:
    users = Counter(id(parameter) for module in network.modules() for parameter in module.parameters(recurse=False))
    for path, parent in list(network.named_modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in (nn.Linear, Conv1D):
                whole = f"{path}.{name}" if path else name
                yield _Place(whole, parent, name, layer, is_shared=users[id(layer.weight)] > 1)


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
