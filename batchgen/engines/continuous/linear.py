"""Pack a network's linear layers and fuse its activations: the same functions on faster kernels.

A rule chooses the kernels, by device, dtype and what this build of torch supports; a measurement could be distorted by
a busy machine. A run keeps the kernels it was started with. Knows nothing of batches or caches.
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
from batchgen.engines.fused.block import Block
from batchgen.engines.fused.product import Product, bias_of, is_linear, weight_of
from batchgen.engines.int8.network import int8_kernels_of

PLAIN, PACKED, PARTLY = "plain", "packed", "packed, except weights shared with the embedding"
# With layers of `fused`: packed; packed except shared weights; not packed.
FUSED, FUSED_PARTLY, FUSED_PLAIN = "fused", "fused, except weights shared with the embedding", "fused, not packed"
WITH_BLOCKS = (FUSED, FUSED_PARTLY, FUSED_PLAIN)
# With layers of `fused` whose small operations `compiled` has compiled.
COMPILED, COMPILED_PARTLY = "compiled", "compiled, except weights shared with the embedding"
COMPILED_PLAIN = "compiled, not packed"
WITH_LOOPS = (COMPILED, COMPILED_PARTLY, COMPILED_PLAIN)
KERNELS = (
    COMPILED, COMPILED_PARTLY, FUSED, FUSED_PARTLY, PACKED, PARTLY, COMPILED_PLAIN, FUSED_PLAIN, PLAIN,
)  # fmt: skip

Layer: TypeAlias = nn.Linear | Conv1D


class UnpackedLinear(nn.Module):
    """A loaded layer whose own weight was freed: each product restores it, bit for bit, from the packed layer.

    It runs the loaded layer's operation: `F.linear`, or that of GPT-2's `Conv1D`. Its outputs are the slice `rows` of
    the packed layer's outputs. `dtype` may be set to a wider one than that of the weight, to compute in it.
    """

    def __init__(self, packed: PackedLinear, rows: slice, *, is_conv1d: bool) -> None:
        super().__init__()
        self.packed = packed
        self.rows = rows
        self.is_conv1d = is_conv1d
        self.dtype = packed.weight.dtype
        self.in_features, self.out_features = packed.in_features, rows.stop - rows.start

    # For parent modules that read their layer's weight and bias, as Mamba's does.

    @property
    def weight(self) -> HiddenWeight:
        return HiddenWeight(self.dtype, self._as_loaded)

    def _as_loaded(self) -> torch.Tensor:
        return self.packed.weight.as_loaded()[self.rows].to(self.dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        return None if self.packed.bias is None else self.packed.bias[self.rows].to(self.dtype)

    def unpack(self) -> Layer:
        """Return the layer as it was loaded, with its own weight and bias."""
        weight, bias = self._as_loaded(), self.bias  # [O, I], [O]
        with torch.device("meta"):
            layer: Layer = Conv1D(*weight.shape) if self.is_conv1d else nn.Linear(weight.shape[1], len(weight))
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="cpu", dtype=weight.dtype), False)
        weight_of(layer).copy_(weight)
        layer.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        return layer.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._as_loaded(), self.bias  # [O, I], [O]
        if not self.is_conv1d:
            return F.linear(x, weight, bias)
        columns = weight.T.contiguous()  # [I, O], as it was loaded
        return torch.addmm(bias, x.view(-1, x.shape[-1]), columns).view(*x.shape[:-1], -1)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Place:
    """A child of a module, and the linear layers that it consists of."""

    parent: nn.Module
    name: str
    layers: list[Layer]
    is_shared: bool  # the embedding uses the same weight
    follow: str = ""

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight.nbytes for layer in self.layers)


def speed_up(
    network: nn.Module,
    loaded: nn.Module | None = None,
    *,
    has_room: Callable[[int], bool] = lambda num_bytes: True,
    kernels: str | None = None,
) -> bool:
    """Replace a network's linear layers and activations with faster equivalents; return whether any layer was packed.

    `loaded`, the network that shares its tensors, is given if nothing else needs it: its own weights are then freed one
    by one, and it restores them from the packed ones as it needs them. `has_room` is asked about the bytes of copies:
    of all weights, or with `loaded` of those shared with the embedding. `kernels` are the ones that a run was started
    with: nothing beyond them is packed.
    """
    _fuse_activations(network)
    places = list(_places(network))
    copied = sum(place.weight_bytes for place in places if loaded is None or place.is_shared)
    dtypes = {(layer.weight.device, layer.weight.dtype) for place in places for layer in place.layers}
    if kernels in (PLAIN, FUSED_PLAIN, COMPILED_PLAIN) or not places or not all(can_pack(*kind) for kind in dtypes):
        return False
    has_all = has_room(copied)
    if not has_all and loaded is None:
        return False
    if kernels in (PARTLY, FUSED_PARTLY, COMPILED_PARTLY) or not has_all:
        places = [place for place in places if not place.is_shared]
    homes = _homes(loaded) if loaded is not None else {}
    is_compiled = _is_compiled(network)
    while places:  # their weights are freed one by one
        _pack(places.pop(), homes, is_compiled=is_compiled)
    _fuse_gelu(network)
    return True


def unpack(loaded: nn.Module) -> None:
    """Give a loaded network back the weights that `speed_up` freed, one layer after the other."""
    for parent in list(loaded.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, UnpackedLinear):
                setattr(parent, name, layer.unpack())


def kernels_of(network: nn.Module) -> str:
    """Return which kernels a network's linear layers run on."""
    if kernels := int8_kernels_of(network):
        return kernels
    is_compiled = _is_compiled(network)
    kinds = Counter(type(module) for module in network.modules())
    names = WITH_LOOPS if is_compiled else WITH_BLOCKS if kinds[Block] else (PACKED, PARTLY, PLAIN)
    if not any(issubclass(kind, PackedLinear) for kind in kinds):
        return names[2]
    return names[1] if kinds[nn.Linear] or kinds[Conv1D] else names[0]


def _is_compiled(network: nn.Module) -> bool:
    return any(isinstance(module, Block) and module.attend_in_steps for module in network.modules())


def _kind(weight: torch.Tensor, follow: str, *, is_compiled: bool) -> type[PackedLinear]:
    if is_compiled:
        from batchgen.engines.compiled.floats import TiledLinear

        if TiledLinear.supports(weight, follow):
            return TiledLinear
    return PackedLinear


def _pack(place: _Place, homes: dict[int, tuple[nn.Module, str]], *, is_compiled: bool) -> None:
    """Pack the layers at a place; the loaded network's layers then restore their weights from the packed one."""
    weights = [weight_of(layer) for layer in place.layers]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    packed = _kind(weight, place.follow, is_compiled=is_compiled)(weight, bias_of(place.layers), place.follow)
    setattr(place.parent, place.name, packed)
    first = 0
    for layer in place.layers if not place.is_shared else ():
        rows = slice(first, first + len(weight_of(layer)))
        first = rows.stop
        if id(layer.weight) in homes:
            parent, name = homes[id(layer.weight)]
            setattr(parent, name, UnpackedLinear(packed, rows, is_conv1d=isinstance(layer, Conv1D)))


def _homes(network: nn.Module) -> dict[int, tuple[nn.Module, str]]:
    """Map the id of each weight to its parent module and name in a network."""
    return {
        id(layer.weight): (parent, name)
        for parent in network.modules()
        for name, layer in parent.named_children()
        if is_linear(layer)
    }


def _places(network: nn.Module) -> Iterator[_Place]:
    users = Counter(id(parameter) for module in network.modules() for parameter in module.parameters(recurse=False))
    products = [module for module in network.modules() if isinstance(module, Product)]
    inside = {id(module) for product in products for module in product.modules()}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Product):
                yield _Place(parent, name, list(child.layers), is_shared=False, follow=child.follow)
            elif is_linear(child) and id(parent) not in inside:
                yield _Place(parent, name, [child], is_shared=users[id(child.weight)] > 1)


def _fuse_activations(network: nn.Module) -> None:
    """Replace GPT-2's gelu, which transformers writes out in Python operations, with one kernel that computes it."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))


def _fuse_gelu(network: nn.Module) -> None:
    """Let packed inner layers of GPT-2 also apply the gelu that follows: one pass over memory and one rounding less."""
    for module in network.modules():
        if type(module) is GPT2MLP and type(module.c_fc) is PackedLinear and type(module.act) is nn.GELU:
            module.c_fc.follow = "gelu tanh"
            module.act = nn.Identity()
